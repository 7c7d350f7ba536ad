"""Engines: what one is, vLLM with proven swaps, and one that says what it is told."""
