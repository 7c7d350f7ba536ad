"""Refuses a rollout.tensor_parallel by which a model's layers do not divide, as vLLM's engines would at their start."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlpost.config.keys import refusal
from rlpost.config.schema import Config
from rlpost.errors import ConfigError, ModelError

_PADDED = 64  # vLLM pads the vocabulary to a multiple of this


def check_tensor_parallel(cfg: Config, model_folder: Path) -> None:
    """Raises ConfigError, naming the sizes that do not divide; ModelError if the model's config cannot be read."""
    ranks = cfg.rollout.tensor_parallel
    if ranks == 1:
        return
    try:
        config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
        found = list(_undivided(config.get("text_config") or config, ranks))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{model_folder} cannot be read as a model's configuration ({error}).") from error
    if found:
        reason = f"model={cfg.model} has {', '.join(found)}, which that many processes cannot share"
        raise ConfigError(
            refusal("rollout.tensor_parallel", ranks, reason, "give a number that divides them, or 1")
        )


def _undivided(config: Mapping[str, Any], ranks: int) -> Iterator[str]:
    heads, keys = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and heads % ranks:
        yield f"{heads} attention heads"
    # Fewer key-value heads than ranks are repeated.
    if isinstance(keys, int) and keys > 0 and keys % ranks and ranks % keys:
        yield f"{keys} key-value heads"
    width, words = config.get("intermediate_size"), config.get("vocab_size")
    if isinstance(width, int) and width % ranks:
        yield f"an MLP of width {width}"
    if isinstance(words, int) and (padded := -(-words // _PADDED) * _PADDED) % ranks:
        yield f"a vocabulary of {words} (padded to {padded})"
