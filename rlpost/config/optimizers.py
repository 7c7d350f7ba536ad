"""Which parameters an optimizer updates, by their names and shapes. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence


def is_muons(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon updates a parameter; AdamW updates the rest.

    Muon takes matrices (arXiv 2502.16982): no vectors (a matrix of one row is one), no embeddings and no head.
    """
    outside = "embed" in name or "lm_head" in name
    return not outside and len(shape) == 2 and min(shape) > 1
