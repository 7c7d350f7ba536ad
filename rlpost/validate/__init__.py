"""Refusals at the start, before anything heavy is loaded."""
