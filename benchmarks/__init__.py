"""Measurements behind the speed claims. Each is run by hand (`python -m benchmarks.NAME`) and prints both sides of its
claim from one run, as a ratio with its spread."""
