"""A coefficient of the KL penalty that steers the divergence to a target (arXiv 1909.08593, section 2.2)."""

from __future__ import annotations

ERROR_BOUND = 0.2  # of the relative error that one step answers to, as published


def steered(coefficient: float, measured: float, target: float, gain: float) -> float:
    """The next coefficient: times 1 + gain x the relative error, bounded to +-0.2.

    `measured` and `target` in nats per token.
    """
    error = (measured - target) / target
    return coefficient * (1.0 + gain * max(-ERROR_BOUND, min(ERROR_BOUND, error)))
