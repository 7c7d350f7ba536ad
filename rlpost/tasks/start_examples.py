"""The examples of the environment that a start of an adapter reads (`lora.start`: eva, corda, lora_ga)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from rlpost.config.adapter_starts import STARTS, StartData
from rlpost.config.schema import Config
from rlpost.envs.adapter import tools_of
from rlpost.envs.base import Expert
from rlpost.rollout.chat import Chat
from rlpost.rollout.env_threads import living
from rlpost.seeds import derive
from rlpost.tasks.expert_data import ExpertData
from rlpost.types import Example


def start_examples(cfg: Config, chat: Chat) -> list[Example] | None:
    """The first `lora.start_examples` supervised examples of the training variant; without an expert, prompts alone.

    They depend on the seed only. Tokens beyond rollout.max_model_len are cut off. Empty if the start reads none. None
    for a resumed run, whose weights come from its checkpoint.

    Raises RolloutError if the environment takes longer than rollout.env_timeout_s.
    """
    if cfg.resume is not None:
        return None
    if STARTS[cfg.lora.start].data is StartData.none:
        return []
    limit = cfg.rollout.max_model_len
    return [Example(e.token_ids[:limit], e.loss_mask[:limit]) for e in _examples(cfg, chat)]


def _examples(cfg: Config, chat: Chat) -> list[Example]:
    timeout_s = cfg.rollout.env_timeout_s
    with living(cfg.env, cfg.env_args, timeout_s, "asked for the start's examples") as (env, ask):
        if not isinstance(env.unwrapped, Expert):
            return [ask(partial(_prompt, cfg, chat, env, index)) for index in range(cfg.lora.start_examples)]
    first = replace(cfg, sft=replace(cfg.sft, batch_size=cfg.lora.start_examples, skip=0))
    with closing(ExpertData(first, chat)) as data:
        return data.batch(0)[0]


def _prompt(cfg: Config, chat: Chat, env: Any, index: int) -> Example:
    """A prompt without an answer, so without a token in the loss."""
    seed = derive(cfg.seed, "start", index)
    observation, _ = env.reset(seed=seed, options={"variant": cfg.train_variant, "split": "train"})
    ids = chat.prompt_ids(observation, tools_of(env))
    return Example(ids, (0,) * len(ids))
