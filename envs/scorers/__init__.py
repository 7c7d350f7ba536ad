"""Ready scorers that need more than a comparison: formulas (math-verify) and code (a process of its own)."""
