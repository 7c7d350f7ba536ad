"""Environments of one question and one answer, made from data sets and task generators."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from rlpost.envs.base import ExpertTurn, VariantInfo
from rlpost.envs.choices import Mode
from rlpost.envs.messages import Said, readable
from rlpost.envs.parsing import MAX_ANSWER
from rlpost.envs.reset_options import variant_and_split
from rlpost.envs.splits import Split
from rlpost.envs.texts import AnySaid, AnyText

_MAX_OBSERVATION = 10_000_000  # characters


def instance_of(said: Said) -> str:
    """The name of an instance: a hash of its question, so equal questions are the same instance everywhere."""
    return hashlib.sha256(readable(said).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class Question:
    observation: Said
    instance: str
    data: Any  # data for the scorer


@dataclass(frozen=True)
class Verdict:
    reward: float
    outcome: str
    success: bool
    parts: Mapping[str, float] = field(default_factory=dict)  # parts of the reward by name, if it has several


class OneTurn(gymnasium.Env[Said, str], ABC):
    """Asks a question and scores the one answer; the episode is then over. Subclasses define question and score.

    `reset` takes the options `variant` (default: the first that is not held out) and `split`.
    """

    def __init__(self, variants: Mapping[str, VariantInfo]) -> None:
        self.observation_space = AnySaid(_MAX_OBSERVATION)
        self.action_space = AnyText(MAX_ANSWER)
        self._variants = variants
        self._rng = random.Random()
        self._question: Question | None = None
        self._over = True

    @abstractmethod
    def draw(self, variant: str, split: Split, rng: random.Random) -> Question:
        """A question of a variant and split. Raises ValueError if there is none."""

    @abstractmethod
    def grade(self, question: Question, answer: str) -> Verdict: ...

    @property
    def question(self) -> Question:
        """The current question. Raises ResetNeeded before the first reset."""
        if self._question is None:
            raise ResetNeeded("nothing is asked yet: call reset first")
        return self._question

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Said, dict[str, Any]]:
        first = next(name for name, variant in self._variants.items() if not variant.held_out)
        variant, split = variant_and_split(options, self._variants, first, Mode.MENDED)
        super().reset(seed=seed)
        if seed is not None:
            self._rng = random.Random(seed)
        self._question, self._over = self.draw(variant.name, split, self._rng), False
        return self._question.observation, {"instance": self._question.instance}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise ResetNeeded("the episode is over, or none has begun: call reset first")
        verdict = self.grade(self.question, action)
        self._over = True
        feedback = "Correct." if verdict.success else "Not correct."
        info: dict[str, Any] = {"outcome": verdict.outcome, "success": verdict.success}
        if verdict.parts:
            info["parts"] = dict(verdict.parts)
        return feedback, verdict.reward, True, False, info


class Demonstrates(ABC):
    """Mixed into a OneTurn whose questions have a right answer, to make it an rlpost.envs.base.Expert."""

    question: Question

    @abstractmethod
    def right_answer(self, question: Question) -> str: ...

    def expert(self, revision: bool, rng: random.Random) -> list[ExpertTurn]:
        """The question and its answer. With one turn there is nothing to revise, so `revision` has no effect."""
        return [(self.question.observation, self.right_answer(self.question), True)]
