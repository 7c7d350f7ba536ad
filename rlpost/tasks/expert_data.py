"""An expert's answers as supervised examples, addressed by step, or by iteration of RL after a warm start."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.adapter import tools_of
from rlpost.envs.base import Expert, ExpertTurn, Taught
from rlpost.errors import ConfigError
from rlpost.rollout.chat import Chat
from rlpost.rollout.env_threads import EnvThread
from rlpost.seeds import derive
from rlpost.types import Example

T = TypeVar("T")


class ExpertData:
    """Supervised examples of the training variant, addressed by step: new ones, or a data set repeated in epochs.

    If the environment's answers are a list (rlpost.envs.base.Taught), the data set is that list, or `sft.examples` of
    it, drawn by the seed.

    Raises:
        ConfigError: the environment shows no expert answers.
    """

    def __init__(self, cfg: Config, chat: Chat) -> None:
        self._cfg, self._chat = cfg, chat
        self._thread = EnvThread()  # the environment is created, asked and closed in this thread
        self._env = self._asked(partial(registry.make, cfg.env, **cfg.env_args))
        self._epoch, self._order = -1, list[int]()
        if not isinstance(self._env.unwrapped, Expert):
            raise ConfigError(
                f"sft.steps={cfg.sft.steps}: the environment {cfg.env} has no expert answers to learn from;"
                " set sft.steps=0 and algo.expert_coef=0, or give the environment an `expert` method."
            )
        self._lessons = self._chosen_lessons()
        self._size = len(self._lessons) or cfg.sft.examples  # 0: endless

    def batch(self, step: int) -> tuple[list[Example], list[str]]:
        """The examples of a step, and the instances that they solve.

        Raises RolloutError if the environment takes longer than rollout.env_timeout_s for an example.
        """
        size = self._cfg.sft.batch_size
        return self._drawn(step, step * size, size)

    def of_iteration(self, iteration: int) -> tuple[list[Example], list[str]]:
        """The `algo.expert_examples` examples of an iteration of RL, which follow those of the warm start.

        Raises as `batch` does.
        """
        sft, count = self._cfg.sft, self._cfg.algo.expert_examples
        before = sft.steps * sft.batch_size + iteration * count
        return self._drawn(sft.steps + iteration, before, count)

    def _drawn(self, step: int, before: int, count: int) -> tuple[list[Example], list[str]]:
        """The `count` examples of a step, after `before` others of this run."""
        pairs = [self._pair(step, index, before + index) for index in range(count)]
        return [example for example, _ in pairs], [instance for _, instance in pairs]

    def close(self) -> None:
        """Close the environment. Raises RolloutError if it takes longer than rollout.env_timeout_s."""
        self._asked(self._env.close)
        self._thread.end()

    def _asked(self, ask: Callable[[], T]) -> T:
        who = f"the environment {self._cfg.env} (asked for an example)"
        return self._thread.within(self._cfg.rollout.env_timeout_s, who, ask)

    def _chosen_lessons(self) -> Sequence[tuple[str, Sequence[ExpertTurn]]]:
        """The lessons to train on; empty if the environment has no list."""
        cfg, taught = self._cfg, self._env.unwrapped
        if not isinstance(taught, Taught):
            return ()
        lessons = list(self._asked(partial(taught.lessons, cfg.train_variant, "train")))
        wanted = cfg.sft.examples or len(lessons)
        return random.Random(derive(cfg.seed, "sft data set")).sample(lessons, wanted)

    def _pair(self, step: int, index: int, number: int) -> tuple[Example, str]:
        """An example and its instance: new ones by step and index in it, those of a data set by number in the run."""
        sft, seed = self._cfg.sft, self._cfg.seed
        if self._size == 0:
            return self._asked(partial(self._example, derive(seed, "sft", sft.skip + step, index)))
        epoch, position = divmod(sft.skip * sft.batch_size + number, self._size)
        chosen = self._shuffled(epoch)[position]
        if self._lessons:
            instance, conversation = self._lessons[chosen]
            return self._chat.example(conversation), instance
        return self._asked(partial(self._example, derive(seed, "sft data set", chosen)))

    def _shuffled(self, epoch: int) -> list[int]:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(self._size))
            random.Random(derive(self._cfg.seed, "sft order", epoch)).shuffle(self._order)
        return self._order

    def _example(self, seed: int) -> tuple[Example, str]:
        cfg, rng = self._cfg, random.Random(seed)
        options = {"variant": cfg.train_variant, "split": "train"}
        _, info = self._env.reset(seed=seed, options=options)
        expert = self._env.unwrapped
        assert isinstance(expert, Expert)
        conversation = expert.expert(rng.random() < cfg.sft.revision_share, rng)
        return self._chat.example(conversation, tools_of(self._env)), str(info["instance"])
