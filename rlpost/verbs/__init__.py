"""Commands on trained runs: one module per verb, each with `main(argv)`, which returns the exit code."""
