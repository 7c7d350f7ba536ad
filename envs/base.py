"""What the rest of the project may ask of an environment beyond Gymnasium's own interface."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rlpost.envs.messages import Said

MAX_REWARD = 1e15  # in size; the learner computes with squares of rewards in float32, which ends at 3.4e38
MAX_OUTCOME = 100  # characters

ExpertTurn = tuple[Said, str, bool]
"""(observation, answer, learn): `learn` is False for a wrong attempt, which is context only."""


class VariantInfo(Protocol):
    """A rule variant as data. `held_out` variants are for evaluation only.

    One that is held out for its instances alone, under the trained rule, says so with an attribute `same_rule`.
    """

    @property
    def name(self) -> str: ...

    @property
    def held_out(self) -> bool: ...

    @property
    def summary(self) -> str: ...


def has_own_rule(variant: VariantInfo) -> bool:
    """Whether a variant holds out a rule; one without `same_rule` that is held out does."""
    return variant.held_out and not getattr(variant, "same_rule", False)


def outcome_name(outcome: str) -> str:
    """`outcome`, which names a metric and a figure's bar. Raises ValueError unless it is one short line."""
    if len(outcome) > MAX_OUTCOME or not outcome.isprintable():
        raise ValueError(
            f"the outcome {outcome[:40]!r}... is no name: give one line of at most {MAX_OUTCOME} characters, the"
            " same for all answers to which the same happened"
        )
    return outcome


@dataclass(frozen=True)
class PlainVariant:
    """A variant that is no more than its name, for environments that declare theirs."""

    name: str
    held_out: bool
    summary: str


@runtime_checkable
class Expert(Protocol):
    """An environment that can show right answers for the instance it was reset to."""

    def expert(self, revision: bool, rng: random.Random) -> list[ExpertTurn]: ...


@runtime_checkable
class Taught(Protocol):
    """An environment whose right answers are a list. Supervised fine-tuning goes through it in epochs."""

    def lessons(self, variant: str, split: str) -> Sequence[tuple[str, Sequence[ExpertTurn]]]:
        """(instance, conversation) of each; empty where there are none to learn from."""


def is_scored(env: object) -> bool:
    """Whether episodes can be played: an environment that cannot score answers says so with `scores = False`."""
    return bool(getattr(env, "scores", True))


@runtime_checkable
class Finite(Protocol):
    """An environment that knows how many instances it has. Evaluation plays none of them twice."""

    def instances(self, variant: str, split: str) -> int | None:
        """How many different ones `reset` draws from; None where that is not known, or they are without end."""


@runtime_checkable
class Listed(Protocol):
    """An environment whose prompts are a list, which can be looked through before any is played."""

    def prompts(self, variant: str, split: str) -> Sequence[tuple[str, Said]]:
        """(where it stands, what `reset` says) of each."""

    def remarks(self) -> list[str]:
        """What is odd in the list, a sentence each; empty where nothing is."""


@runtime_checkable
class Rehearsed(Protocol):
    """An environment that calls code of its user's, which can be tried before anything is started."""

    def rehearsals(self) -> list[tuple[str, Callable[[], object]]]:
        """A few cheap calls, each with its name; what a call raises is a fault."""


@runtime_checkable
class WithTools(Protocol):
    """An environment whose answers may call tools. The model's chat template says to the model what there is.

    What an answer calls is the environment's to read (rlpost.envs.tool_calls has a parser), and so is the result, which
    it says as a message of the role "tool". The tools may differ between instances: they are read after every `reset`.
    """

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Each as chat templates take them: {"type": "function", "function": {"name", "description", "parameters"}},
        the parameters as a JSON schema."""


@runtime_checkable
class Playable(Protocol):
    """An environment that a person can play at a terminal."""

    def read_line(self, line: str) -> str:
        """The answer that a line typed by a person stands for."""

    def hint(self, rng: random.Random) -> str:
        """A right line for the present instance."""


class Explained(Protocol):
    """An environment's class that says what its outcomes mean, by the words of envs/causes.py or its own."""

    causes: Mapping[str, str]


@runtime_checkable
class Pictured(Protocol):
    """An environment whose present instance can be drawn."""

    def picture(self) -> str:
        """The instance and what was done so far, as an SVG document."""
