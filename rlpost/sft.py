"""Supervised fine-tuning of the adapter on fresh expert answers: the warm start of RL, and `task=sft`."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from envs import registry
from envs.base import Expert
from rlpost import checkpoint
from rlpost.config import Config
from rlpost.errors import ConfigError
from rlpost.evaluate import evaluate_stage, variants_of
from rlpost.rollout.chat import Chat
from rlpost.rollout.env_threads import within
from rlpost.seeds import derive
from rlpost.session import Session, open_session, publish, training_settings
from rlpost.types import Example


class ExpertData:
    """Endless supervised examples of the training variant, addressed by step.

    Raises:
        ConfigError: the environment shows no expert answers.
    """

    def __init__(self, cfg: Config, chat: Chat) -> None:
        self._cfg, self._chat = cfg, chat
        self._env = registry.make(cfg.env, **cfg.env_args)
        if not isinstance(self._env.unwrapped, Expert):
            raise ConfigError(
                f"sft.steps={cfg.sft.steps}: the environment {cfg.env} has no expert answers to learn from;"
                " set sft.steps=0, or give the environment an `expert` method."
            )

    def batch(self, step: int) -> list[Example]:
        """Raises RolloutError when the environment takes longer than rollout.env_timeout_s for an example."""
        timeout_s, who = (
            self._cfg.rollout.env_timeout_s,
            f"the environment {self._cfg.env} (asked for an example)",
        )
        return [
            within(timeout_s, who, partial(self._example, step, index))
            for index in range(self._cfg.sft.batch_size)
        ]

    def _example(self, step: int, index: int) -> Example:
        cfg = self._cfg
        seed = derive(cfg.seed, "sft", step, index)
        rng = random.Random(seed)
        self._env.reset(seed=seed, options={"variant": cfg.train_variant, "split": "train"})
        expert = self._env.unwrapped
        assert isinstance(expert, Expert)
        return self._chat.example(expert.expert(rng.random() < cfg.sft.revision_share, rng))


def train_steps(session: Session, first: int, last: int) -> None:
    """Take the steps first..last-1 (in order of their addresses); each is a line of metrics.jsonl."""
    data = ExpertData(session.cfg, session.chat)
    for step in range(first, last):
        session.progress.stage(f"supervised step {step + 1}/{session.cfg.sft.steps}")
        with session.clock.phase("data"):
            examples = data.batch(step)
        with session.clock.phase("update"):
            metrics = session.learner.sft_step(examples, step)
        metrics.pop("seconds_update")
        session.run_dir.append_metrics({"stage": "sft", "step": step, **metrics, **session.clock.lap()})


def run(cfg: Config) -> None:
    """`task=sft`: evaluate, train, evaluate; a checkpoint every `tracking.checkpoint_every` steps."""
    with open_session(cfg, with_learner=True) as session:
        first, evaluations = 0, dict[str, Any]()
        if cfg.resume is not None:
            first, evaluations = _resume(session)
        else:
            session.book("start")
            evaluations["before"] = evaluate_stage(session, "before")
        every = cfg.tracking.checkpoint_every
        for start in range(first, cfg.sft.steps, every):
            end = min(start + every, cfg.sft.steps)
            train_steps(session, start, end)
            checkpoint.save(
                session.run_dir, end, session.learner.save, {"eval": evaluations}, training_settings(cfg)
            )
        adapter, canary = session.learner.export(1)
        adapter.save(session.run_dir.adapter)
        swap = session.pool.swap(adapter, canary)
        evaluations["after"] = evaluate_stage(session, "after")
        publish(session, evaluations, variants_of(cfg), cfg.sft.steps, [swap.seconds], [swap.canary_gap])


def _resume(session: Session) -> tuple[int, dict[str, Any]]:
    found = checkpoint.latest(session.run_dir, training_settings(session.cfg))
    session.learner.load(found.path)
    session.run_dir.truncate_metrics(found.iteration - 1, key="step")
    return found.iteration, found.progress["eval"]
