"""An adaptive KL coefficient: it steers the divergence to a target (arXiv 1909.08593, section 2.2)."""

from __future__ import annotations

ERROR_BOUND = 0.2  # limit of the relative error that one update reacts to, as published


def steered(coefficient: float, measured: float, target: float, gain: float) -> float:
    """The next KL coefficient: the current one times 1 + gain x relative error, clipped to +-0.2.

    `measured` and `target` are in nats per token.
    """
    error = (measured - target) / target
    return coefficient * (1.0 + gain * max(-ERROR_BOUND, min(ERROR_BOUND, error)))
