"""Fused operations: for each a plain torch reference, which is the definition, and a fast path beside it."""
