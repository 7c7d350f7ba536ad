"""Settings: what there is, how a command line and files become one Config, and whose code they may name."""
