"""Checks before Ray starts that the model's chat template can write and append what the environment says."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.asking import Asking
from rlpost.rollout.chat import Chat
from rlpost.rollout.env_threads import living
from rlpost.rollout.episode import Opening, Reply, opened, replied
from rlpost.rollout.specs import Instance, evaluation_specs, training_specs
from rlpost.types import EpisodeSpec, Finish
from rlpost.validate.environment import TRAINING


def rehearse(cfg: Config, chat: Chat) -> None:
    """Open one episode of each variant, give an empty answer, and encode what the environment says.

    Raises ModelError if the chat template cannot write it, or rewrites earlier messages; ConfigError if the environment
    has a system message in addition to rollout.system_prompt. Errors of the environment itself are ignored here: the
    rollouts report them, with their episode.
    """
    for opening, reply in _heard(cfg):
        chat.prompt_ids(opening.messages, opening.tools)
        if reply is not None and reply.ending is None:
            chat.feedback_ids(reply.messages, Finish.STOP, opening.tools)


def _heard(cfg: Config) -> list[tuple[Opening, Reply | None]]:
    """The openings and replies of each variant's episode, up to the environment's first failure."""
    heard = list[tuple[Opening, Reply | None]]()
    make_env = partial(registry.make, cfg.env, **cfg.env_args)
    with (
        suppress(Exception),  # an environment may raise anything
        living(cfg.env, cfg.env_args, cfg.rollout.env_timeout_s, "rehearsed") as (env, ask),
    ):
        if isinstance(env.unwrapped, Asking):
            return heard  # a program may say anything: what cannot be appended becomes a new sample
        for spec in _specs(cfg):
            opening = ask(partial(opened, make_env, env, spec))
            heard.append((opening, None))
            heard[-1] = (opening, ask(partial(replied, env, "")))
    return heard


def _specs(cfg: Config) -> list[EpisodeSpec]:
    """The first episode of each variant that is played."""
    trained = training_specs(cfg, 0)[:1] if cfg.task in TRAINING else []
    return trained + [
        spec for variant in cfg.eval_variants for spec in evaluation_specs(cfg, variant, [Instance(0)])
    ]
