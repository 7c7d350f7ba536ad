"""Metrics of episodes and of time. docs/metrics.md defines every key."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rlpost.record import failures
from rlpost.record.pass_at_k import by_instance, majorities, passes
from rlpost.types import Ending, Finish, Trajectory, Turn

NANO = 1e-9
SPLIT_TOLERANCE = 0.01  # share of a phase's seconds: the clocks of two machines differ slightly


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over a batch of episodes, or over their answers. Raises ValueError for an empty batch."""
    episodes, answers = _counted(trajectories), _answers(trajectories)
    endings = Counter(t.ending for t in trajectories)
    return {
        "episodes": float(episodes),
        "success": sum(t.success for t in trajectories) / episodes,
        "reward": sum(t.total_reward for t in trajectories) / episodes,
        **_env_reward(trajectories),
        "partly_right": sum(not t.success and _partly_right(t) for t in trajectories) / episodes,
        "turns": len(answers) / episodes,
        "tokens/prompt": float(sum(len(turn.context_ids) for turn in answers)),
        "tokens/sampled": float(sum(t.answer_tokens for t in trajectories)),
        "answer_tokens": _mean_tokens(answers),
        "cut_share": _cut_share(answers),
        **_parts(answers),
        **{f"outcome/{name}": n / len(answers) for name, n in _outcomes(answers).items()},
        **{f"ending/{ending.value}": endings[ending] / episodes for ending in Ending},
        **{kind: float(count) for kind, count in failures.counts(trajectories).items()},
    }


def evaluation(trajectories: Sequence[Trajectory], answer_marker: str | None = None) -> dict[str, Any]:
    """The result of one (variant, decoding), as JSON. Raises ValueError for an empty batch.

    `answer_marker`: rollout.answer_marker; the text after it votes for majority@k.
    """
    n, answers = _counted(trajectories), _answers(trajectories)
    failed = [t for t in trajectories if not t.success]
    rewards = [t.total_reward for t in trajectories]
    reward_low, reward_high = mean_interval(rewards)
    return {
        **_solved(trajectories),
        "success_by_turn": _success_by_turn(trajectories),
        "step_accuracy": step_accuracy(trajectories),
        "reward": sum(rewards) / n,
        "reward_low": reward_low,
        "reward_high": reward_high,
        "graded": any(map(_partly_right, failed)),
        "answer_tokens": _known_mean_tokens(trajectories),
        "cut_share": _cut_share(answers),
        "outcomes": _outcomes(answers),
        "failures": _outcomes([t.turns[-1] for t in failed if t.turns]),
        "context_full": sum(t.ending is Ending.CONTEXT_FULL for t in trajectories),
        "env_errors": sum(t.ending is Ending.ENV_ERROR for t in trajectories),
        "env_timeouts": sum(t.ending is Ending.ENV_TIMEOUT for t in trajectories),
        "unfit": sum(map(failures.is_unfit, trajectories)),
        "first_failure": failures.first_cause(trajectories),
        **_by_k(trajectories, answer_marker),
        **_by_difficulty(trajectories),
        **({"parts": parts} if (parts := _parts(answers)) else {}),
    }


def _solved(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """The numbers of episodes and instances, and the share solved with its interval."""
    n, instances = len(trajectories), len(by_instance(trajectories))
    solved = sum(t.success for t in trajectories)
    low, high = wilson(solved * instances / n, instances)
    return {"n": n, "instances": instances, "success": solved / n, "low": low, "high": high}


def _by_k(trajectories: Sequence[Trajectory], answer_marker: str | None) -> dict[str, Any]:
    """`pass_at` and `majority_at` by k, if each instance was played several times as a group."""
    if max(Counter(t.group for t in trajectories).values()) == 1:
        return {}
    instances = by_instance(trajectories)
    return {
        "pass_at": passes(instances, exact_interval),
        "majority_at": majorities(instances, answer_marker, exact_interval),
    }


def _by_difficulty(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
    """`by_difficulty`, if the environment names the difficulty of instances; episodes without one are left out."""
    difficulties = {t.difficulty for t in trajectories if t.difficulty is not None}
    if not difficulties:
        return {}
    each = {
        d: [t for t in trajectories if t.difficulty == d] for d in sorted(difficulties, key=_number_first)
    }
    return {"by_difficulty": {difficulty: _solved(played) for difficulty, played in each.items()}}


def _number_first(text: str) -> list[tuple[float, str]]:
    """A sort key that orders texts by the numbers in them: "legs: 2" before "legs: 10", and 0.5 before 2."""
    parts = re.split(r"(\d+(?:\.\d+)?)", text)
    return [(float(part), "") if i % 2 else (math.inf, part) for i, part in enumerate(parts)]


def step_accuracy(trajectories: Sequence[Trajectory]) -> float | None:
    """Answers with a reward above 0 / answers: the per-step accuracy of arXiv 2501.17161, appendix C.3.

    Every further attempt at a step counts as a separate answer. None if there are no answers, and if every right answer
    ended its episode: such an episode has one step, so success gives the same information.
    """
    share = right_share(trajectories)
    return None if share and not goes_on_after_right(trajectories) else share


def is_right(turn: Turn) -> bool:
    """Whether the environment rewarded this step."""
    return (turn.reward if turn.env_reward is None else turn.env_reward) > 0


def right_share(trajectories: Sequence[Trajectory]) -> float | None:
    """Right answers / answers; None if there are no answers."""
    answers = _answers(trajectories)
    return sum(map(is_right, answers)) / len(answers) if answers else None


def goes_on_after_right(trajectories: Iterable[Trajectory]) -> bool:
    """Whether some episode continued after a right answer, so that it has steps."""
    return any(is_right(turn) for t in trajectories for turn in t.turns[:-1])


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95% score interval of a share (Wilson, 1927). Raises ValueError unless 0 <= successes <= n and n > 0.

    An instance that was played several times is one trial, with a share of successes: answers to the same question are
    not independent.
    """
    return _share_interval(successes, n, "wilson")


def exact_interval(successes: float, n: int) -> tuple[float, float]:
    """95% exact interval of a share (Clopper and Pearson, 1934).

    It covers at least 95% at every share. `wilson` covers 95% on average over shares, and less near 0 and 1, where
    pass@k often is. Raises like `wilson`.
    """
    return _share_interval(successes, n, "beta")


def _share_interval(successes: float, n: int, method: str) -> tuple[float, float]:
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} are no share")
    from statsmodels.stats.proportion import proportion_confint  # takes two seconds to import

    low, high = proportion_confint(successes, n, alpha=0.05, method=method)
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% normal interval of a mean, by the sample's deviation. For a single value, both ends are that value."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half


def _partly_right(failed: Trajectory) -> bool:
    """Whether an answer that ended its episode unsolved got a reward: the environment then grades answers."""
    return failed.ending is Ending.TERMINATED and bool(failed.turns) and is_right(failed.turns[-1])


def _env_reward(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The environment's mean reward, if a reward function or a control gave another one."""
    given = [turn.env_reward for turn in _answers(trajectories) if turn.env_reward is not None]
    return {"env_reward": sum(given) / len(trajectories)} if given else {}


def _counted(trajectories: Sequence[Trajectory]) -> int:
    if not trajectories:
        raise ValueError("there is nothing to measure: no episodes")
    return len(trajectories)


def _answers(trajectories: Sequence[Trajectory]) -> list[Turn]:
    return [turn for trajectory in trajectories for turn in trajectory.turns]


def _mean_tokens(answers: Sequence[Turn]) -> float:
    return sum(len(turn.answer_ids) for turn in answers) / max(1, len(answers))


def _known_mean_tokens(trajectories: Sequence[Trajectory]) -> float | None:
    """The mean tokens of an answer. For a model behind an endpoint, as its server reported them; else None."""
    answers = _answers(trajectories)
    if all(t.player is None for t in trajectories):
        return _mean_tokens(answers)
    reported = [turn.reported_tokens for turn in answers]
    known = [tokens for tokens in reported if tokens is not None]
    return statistics.fmean(known) if known and len(known) == len(reported) else None


def _cut_share(answers: Sequence[Turn]) -> float:
    return sum(turn.finish is Finish.LENGTH for turn in answers) / max(1, len(answers))


def _outcomes(answers: Sequence[Turn]) -> dict[str, int]:
    return dict(sorted(Counter(turn.outcome for turn in answers).items()))


def _parts(answers: Sequence[Turn]) -> dict[str, float]:
    """For each part of the reward: its mean over the answers that it applies to, and the share of those answers."""
    values: dict[str, list[float]] = {}
    for turn in answers:
        for name, value in turn.parts:
            values.setdefault(name, []).append(value)
    means = {f"reward/{name}": statistics.fmean(each) for name, each in sorted(values.items())}
    return means | {f"applies/{name}": len(each) / len(answers) for name, each in sorted(values.items())}


def _success_by_turn(trajectories: Sequence[Trajectory]) -> list[float]:
    """Entry k: the share of episodes solved within k + 1 turns."""
    longest = max(len(t.turns) for t in trajectories)
    solved_in = [len(t.turns) for t in trajectories if t.success]
    return [sum(turns <= k for turns in solved_in) / len(trajectories) for k in range(1, longest + 1)]


class Clock:
    """Measures time: phases that do not overlap, and laps without gaps between them.

    A lap begins where the previous one ended. Time outside of phases is `other`, so the parts of a lap sum to its wall
    time, and the laps to the run's.
    """

    def __init__(self, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._now_ns = now_ns
        self._lap_began = now_ns()
        self._booked: dict[str, int] = {}
        self._running: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`. Repeated phases add up; a phase that raises is counted too.

        Raises RuntimeError inside another phase, where the time would count twice.
        """
        self._refuse_running(f"phase {name!r} cannot begin")
        if name in ("other", "total"):
            raise ValueError(f"{name!r} is what the clock itself calls a part of a lap")
        self._running, began = name, self._now_ns()
        try:
            yield
        finally:
            self._running = None
            self._booked[name] = self._booked.get(name, 0) + self._now_ns() - began

    def split(self, name: str, parts: Mapping[str, float]) -> None:
        """Divide the time of phase `name` into the seconds of `parts`, as reported by the process that did the work.

        The rest of the phase (transfers, waiting) goes to `other`. Parts that exceed the phase slightly, as the clocks
        of two machines may, are scaled to fit.

        Raises ValueError if the phase did not run in this lap, or the parts are negative or exceed it clearly.
        """
        measured, reported = self._booked.pop(name, 0), sum(parts.values()) / NANO
        if min(parts.values()) < 0 or reported > measured * (1 + SPLIT_TOLERANCE):
            raise ValueError(f"{dict(parts)} are no parts of the {measured * NANO:.3f} s that {name!r} took")
        scale = min(1.0, measured / reported) if reported else 0.0
        for part, seconds in parts.items():
            self._booked[part] = self._booked.get(part, 0) + int(seconds / NANO * scale)

    def lap(self) -> dict[str, float]:
        """Start a new lap. Return the seconds of the last: each `seconds/<phase>`, `seconds/other`, `seconds/total`.

        Raises RuntimeError while a phase runs.
        """
        self._refuse_running("a lap cannot end")
        began, self._lap_began = self._lap_began, self._now_ns()
        total, booked = self._lap_began - began, self._booked
        self._booked = {}
        parts = {**booked, "other": total - sum(booked.values()), "total": total}
        return {f"seconds/{name}": ns * NANO for name, ns in parts.items()}

    def _refuse_running(self, what: str) -> None:
        if self._running is not None:
            raise RuntimeError(f"{what} while phase {self._running!r} runs")
