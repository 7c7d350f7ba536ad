"""Counts and reports episodes that say nothing about the policy, with their first cause.

Broken: the environment raised an error or missed its deadline. Unfit: the prompt left no room for an answer. If all
episodes of a batch are such, it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlpost.errors import RolloutError
from rlpost.types import Ending, Trajectory

_REMEDY = (
    "play single episodes with task=dry_run; try the environment (and its scorer) by itself with"
    " python -m rlpost.envs.check; for long prompts raise rollout.max_model_len"
)
_MOST = 300  # characters shown of a cause: an exception may quote a whole row


def is_broken(episode: Trajectory) -> bool:
    return episode.ending.broken


def is_unfit(episode: Trajectory) -> bool:
    return episode.ending is Ending.CONTEXT_FULL and not episode.turns


KINDS: Mapping[str, tuple[Callable[[Trajectory], bool], str]] = {
    "broken": (is_broken, "broken by the environment"),
    "unfit": (is_unfit, "unfit: the prompt does not fit rollout.max_model_len"),
}


def counts(episodes: Iterable[Trajectory]) -> dict[str, int]:
    """The number of episodes of each of KINDS."""
    played = list(episodes)
    return {kind: sum(map(of_kind, played)) for kind, (of_kind, _) in KINDS.items()}


def first_cause(episodes: Iterable[Trajectory]) -> str | None:
    """The error of the first failed episode, and which episode it was, in one line; None if none failed."""
    return next((_cause(e) for e in episodes if is_broken(e) or is_unfit(e)), None)


def told(metrics: Mapping[str, Any], episodes: float) -> list[str]:
    """One sentence per kind: "8 of 16 episodes (50%) broken by the environment". `metrics` may have other keys too."""
    return [
        f"{metrics[kind]:g} of {episodes:g} episodes ({metrics[kind] / episodes:.0%}) {words}"
        for kind, (_, words) in KINDS.items()
        if metrics.get(kind)
    ]


def notes(episodes: Sequence[Trajectory]) -> list[str]:
    """Warnings about a batch: one sentence per kind, with its first cause. Empty if no episode failed."""
    return [
        f"{sentence}; the first: {first_cause(filter(of_kind, episodes))}"
        for kind, (of_kind, _) in KINDS.items()
        for sentence in told({kind: counts(episodes)[kind]}, len(episodes))
    ]


def refuse_all(episodes: Sequence[Trajectory], what: str, remedy: str = _REMEDY) -> None:
    """Raises RolloutError, with the causes, if no episode of a batch says anything about the policy."""
    if all(is_broken(e) or is_unfit(e) for e in episodes):
        causes = "\n".join(f"  reason: {note}" for note in notes(episodes))
        raise RolloutError(f"{what}: not one episode was played\n{causes}\n  remedy: {remedy}")


def _cause(episode: Trajectory) -> str:
    what = episode.error if is_broken(episode) else "the prompt is too long"
    which = f"instance {episode.instance}" if episode.instance else "at its reset"
    where = f"{episode.env}, variant {episode.variant}, {which}, episode {episode.episode}"
    line = " ".join(str(what).split())
    return f"{line if len(line) <= _MOST else line[:_MOST] + '...'} ({where})"
