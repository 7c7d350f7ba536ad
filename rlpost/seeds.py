"""Every random draw has an address: a seed is a hash of what it is for, never the state of a generator."""

from __future__ import annotations

import hashlib

SEED_BITS = 31  # what Gymnasium, torch and vLLM all take


def derive(*address: int | str) -> int:
    """The seed of an address such as (run seed, "dice", iteration, episode, turn)."""
    digest = hashlib.sha256("/".join(map(str, address)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
