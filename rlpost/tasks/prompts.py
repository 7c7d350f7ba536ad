"""Checks an environment's list of prompts before episodes are played, if it has one: some may not fit the context.

Only prompts that could be too long are encoded: apart from the template's tokens, a prompt has at most one token per
byte.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from rlpost.config.keys import refusal
from rlpost.config.schema import Config
from rlpost.envs.base import Listed
from rlpost.envs.messages import Message, Role, Said, messages_of
from rlpost.errors import ConfigError
from rlpost.rollout.chat import Chat
from rlpost.rollout.env_threads import living
from rlpost.validate.environment import TRAINING


@dataclass(frozen=True)
class _Prompts:
    """The prompts of one variant and split: (their place in the file, their text)."""

    variant: str
    split: str
    listed: Sequence[tuple[str, Said]]


def remarks(cfg: Config, chat: Chat) -> list[str]:
    """Sentences on unusual prompts among those to be played; empty if there are none, or no list of prompts.

    Raises ConfigError if no prompt of a variant fits, RolloutError if the environment misses its deadline.
    """
    said, listed = list[str](), list[_Prompts]()
    timeout_s = cfg.rollout.env_timeout_s
    with living(cfg.env, cfg.env_args, timeout_s, "asked for its prompts") as (env, ask):
        if isinstance(env, Listed):
            said = list(ask(env.remarks))
            listed = [_Prompts(v, split, ask(partial(env.prompts, v, split))) for v, split in _played(cfg)]
    return said + [told for prompts in listed for told in _lengths(cfg, chat, prompts)]


def _played(cfg: Config) -> list[tuple[str, str]]:
    """The variants and splits that a run plays."""
    trained = (
        [] if cfg.task not in TRAINING and cfg.task.name != "dry_run" else [(cfg.train_variant, "train")]
    )
    return [*trained, *((variant, "eval") for variant in cfg.eval_variants)]


def _lengths(cfg: Config, chat: Chat, prompts: _Prompts) -> Iterator[str]:
    limit, room = cfg.rollout.max_model_len, cfg.rollout.max_new_tokens
    most = partial(_most_tokens, functools.cache(partial(_frame, chat)))
    could = [(where, said) for where, said in prompts.listed if most(messages_of(said)) + room > limit]
    tokens = {where: len(chat.prompt_ids(said)) for where, said in could}
    unfit = {where: n for where, n in tokens.items() if n >= limit}
    of = f"of {len(prompts.listed)} prompts of {prompts.variant} ({prompts.split})"
    if unfit:
        where, longest = max(unfit.items(), key=lambda each: each[1])
        told = f"{len(unfit)} {of} do not fit; the longest has {longest} tokens ({where})"
        if len(unfit) == len(prompts.listed):
            remedy = "raise it as far as the model allows, or shorten them"
            raise ConfigError(refusal("rollout.max_model_len", limit, told, remedy))
        yield f"{told}. Their episodes end at once, as not solved: raise rollout.max_model_len={limit} or shorten them."
    if tight := sum(n + room > limit for n in tokens.values()) - len(unfit):
        yield f"{tight} {of} leave less room than rollout.max_new_tokens={room} for an answer."


def _frame(chat: Chat, roles: tuple[Role, ...]) -> int:
    """The number of tokens of a prompt of these roles with empty messages."""
    return len(chat.prompt_ids([Message.of(role, "") for role in roles]))


def _most_tokens(frame: Callable[[tuple[Role, ...]], int], messages: tuple[Message, ...]) -> int:
    roles = tuple(message.role for message in messages)
    return frame(roles) + sum(len(message.text.encode()) for message in messages)
