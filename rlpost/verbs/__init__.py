"""What is done with a run once it has trained: one module a verb, each with `main(argv)` that returns the exit code."""
