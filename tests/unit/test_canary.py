"""The canary is fixed, fits the context, and carries an answer for the log-probs to speak of."""

from __future__ import annotations

from pathlib import Path

from rlpost.canary import MAX_TOKENS, canary_ids
from rlpost.config import Config
from rlpost.rollout.chat import Chat


def test_the_canary_is_the_same_for_every_seed_and_fits(random_model: Path) -> None:
    chat = Chat.load(random_model)
    ids = canary_ids(Config(seed=1), chat)
    assert ids == canary_ids(Config(seed=2), chat)
    assert len(ids) == MAX_TOKENS
    small = Config()
    small.rollout.max_model_len = 16
    assert canary_ids(small, chat) == ids[:15]


def test_it_is_a_prompt_of_the_training_variant(random_model: Path) -> None:
    chat = Chat.load(random_model)
    assert chat.text(canary_ids(Config(), chat)).startswith("Make 24. Rule: J=10")
