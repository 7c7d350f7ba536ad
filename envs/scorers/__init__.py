"""Ready scorers that need more than a comparison: formulas (math-verify) and code (run in its own process)."""
