"""The command `rlpost`: its verbs, its help, the listing of settings, and completion in a shell."""
