"""What the speed claims rest on. Each is run by hand (`python -m benchmarks.NAME`) and prints both sides of its
claim from one run, as a ratio with its spread."""
