"""rlpost: post-training of language models in verifiable, multi-turn environments."""

__version__ = "0.1.0"
