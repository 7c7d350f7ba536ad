"""Fused operations. Each has a plain torch reference, which defines it, and a fast implementation."""
