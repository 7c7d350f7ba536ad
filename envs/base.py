"""What the rest of the project may use of an environment in addition to Gymnasium's own interface."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from rlpost.envs.messages import Said

MAX_REWARD = 1e15  # in size; the learner computes with squares of rewards in float32, which ends at 3.4e38
MAX_OUTCOME = 100  # characters

ExpertTurn = tuple[Said, str, bool]
"""(observation, answer, learn). `learn` is False for a wrong attempt, which is only context."""


class VariantInfo(Protocol):
    """A rule variant as data. `held_out` variants are only for evaluation.

    A variant that holds out only instances, under the trained rule, says so with an attribute `same_rule`. One whose
    prompt states another rule than the one that scores says so with `fake_rule`.
    """

    @property
    def name(self) -> str: ...

    @property
    def held_out(self) -> bool: ...

    @property
    def summary(self) -> str: ...


def has_own_rule(variant: VariantInfo) -> bool:
    """Whether a variant holds out a rule: it is held out and does not set `same_rule`."""
    return variant.held_out and not getattr(variant, "same_rule", False)


def has_fake_rule(variant: VariantInfo) -> bool:
    """Whether the prompt states another rule than the trained one, which scores; the variant sets `fake_rule`."""
    return bool(getattr(variant, "fake_rule", False))


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
    """A variant that consists only of its name, for environments that declare theirs."""

    name: str
    held_out: bool
    summary: str


@runtime_checkable
class Expert(Protocol):
    """An environment that can show right answers for its current instance."""

    def expert(self, revision: bool, rng: random.Random) -> list[ExpertTurn]: ...


@runtime_checkable
class Taught(Protocol):
    """An environment with a list of right answers. Supervised fine-tuning repeats the list in epochs."""

    def lessons(self, variant: str, split: str) -> Sequence[tuple[str, Sequence[ExpertTurn]]]:
        """(instance, conversation) for each lesson; empty if there are none."""


def is_scored(env: object) -> bool:
    """Whether episodes can be played. An environment that cannot score answers sets `scores = False`."""
    return bool(getattr(env, "scores", True))


@runtime_checkable
class Finite(Protocol):
    """An environment that knows how many instances it has. Evaluation plays none of them twice."""

    def instances(self, variant: str, split: str) -> int | None:
        """The number of different instances that `reset` draws from; None if it is unknown or infinite."""


@runtime_checkable
class Enumerated(Protocol):
    """An environment that can name its instances, so that `eval.instances=all` plays every one of them.

    `reset` then takes an option `instance`, one of these names, and returns it as `info["instance"]`. The seed decides
    what the name leaves open, such as the order of the cards.
    """

    def instance_names(self, variant: str, split: str) -> Sequence[str]:
        """The name of every instance of the split, each once, in an order that is the same on every machine."""


@runtime_checkable
class Listed(Protocol):
    """An environment with a list of prompts, which can be checked before any episode is played."""

    def prompts(self, variant: str, split: str) -> Sequence[tuple[str, Said]]:
        """(place in the file, first message of `reset`) for each prompt."""

    def remarks(self) -> list[str]:
        """One sentence for each irregularity in the list; empty if there is none."""


@runtime_checkable
class Rehearsed(Protocol):
    """An environment that calls its user's code, which can be tried before anything is started."""

    def rehearsals(self) -> list[tuple[str, Callable[[], object]]]:
        """A few cheap calls, each with its name. Whatever a call raises is a fault."""


@runtime_checkable
class WithTools(Protocol):
    """An environment whose answers may call tools. The chat template describes the tools to the model.

    The environment itself parses the calls in an answer (rlpost.envs.tool_calls has a parser) and returns the result as
    a message of the role "tool". The tools may differ between instances: they are read after every `reset`.
    """

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """The tools as chat templates take them.

        Each is {"type": "function", "function": {"name", "description", "parameters"}}, with the parameters as a JSON
        schema.
        """


@runtime_checkable
class Playable(Protocol):
    """An environment that a person can play at a terminal."""

    def read_line(self, line: str) -> str:
        """The answer for a line that a person typed."""

    def hint(self, rng: random.Random) -> str:
        """A right line for the current instance."""


class Explained(Protocol):
    """An environment's class that explains its outcomes, with the words of envs/causes.py or its own."""

    causes: Mapping[str, str]


@runtime_checkable
class Pictured(Protocol):
    """An environment whose current instance can be drawn."""

    def picture(self) -> str:
        """The instance, and the steps so far, as an SVG document."""
