"""Separates training from evaluation instances by a hash of the instance, which is the same on every machine."""

from __future__ import annotations

import hashlib
from enum import StrEnum

EVAL_SHARE = 0.3


class Split(StrEnum):
    TRAIN = "train"
    EVAL = "eval"
    ALL = "all"  # every instance: the published protocol, which has no split


def split_of(key: str, eval_share: float = EVAL_SHARE) -> Split:
    """Train or eval, by a hash of the key, which is the same for all machines, versions and variants."""
    digest = hashlib.sha256(key.encode()).digest()
    return Split.EVAL if int.from_bytes(digest[:8], "big") < eval_share * 2**64 else Split.TRAIN
