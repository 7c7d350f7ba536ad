"""The run's settings as they are where retention is measured: another environment, by the same engines."""

from __future__ import annotations

from dataclasses import replace

from rlpost.config.schema import Config, Task
from rlpost.envs import registry


def plays_elsewhere(cfg: Config) -> bool:
    """Whether the run plays `retention.env`: an evaluation or a dry run does not, and never imports its code."""
    return cfg.retention.env is not None and cfg.task in (Task.rl, Task.sft)


def elsewhere(cfg: Config) -> Config:
    """`cfg` with `retention.env` in place of `env`, for evaluation alone: each instance is played once.

    Its variants are `retention.variants`, or the first that is not held out (the first, if all are).
    """
    retention = cfg.retention
    assert retention.env is not None, "asked only if there is another environment"
    variants = list(retention.variants) or [_trained(retention.env, retention.env_args)]
    return replace(
        cfg,
        task=Task.eval,
        env=retention.env,
        env_args=retention.env_args,
        train_variant=variants[0],
        eval_variants=variants,
        eval=replace(cfg.eval, episodes=retention.episodes, samples=1),
        rollout=replace(cfg.rollout, max_new_tokens=retention.max_new_tokens or cfg.rollout.max_new_tokens),
    )


def _trained(name: str, args: dict[str, object]) -> str:
    known = registry.variants(name, **args)
    return next((each.name for each in known if not each.held_out), known[0].name)
