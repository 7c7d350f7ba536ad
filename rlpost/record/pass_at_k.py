"""pass@k and majority@k from several sampled episodes of each instance, with intervals over the instances.

    episodes ─▶ by_instance ─▶ n episodes, c solved ─▶ pass@k      chance that one of k is solved
                               n final answers      ─▶ majority@k  chance that the most frequent of k is right

k of the n played episodes are drawn without replacement, and both figures are the exact mean over all such draws.
Another number of episodes would change their variance, not what they estimate (pass@k: Chen et al., 2021, arXiv
2107.03374, equation 1; majority voting: Wang et al., 2022, arXiv 2203.11171).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from rlpost.types import Trajectory

Estimate = dict[str, float]  # value, low, high
ShareInterval = Callable[[float, int], tuple[float, float]]  # takes (successes, trials)


def by_instance(episodes: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """The episodes of each instance. One that broke before it had an instance counts for the instance of its group."""
    names = {episode.group: episode.instance for episode in episodes if episode.instance}
    played: dict[Hashable, list[Trajectory]] = defaultdict(list)
    for episode in episodes:
        name = episode.instance or names.get(episode.group)
        played[name or episode.group].append(episode)
    return list(played.values())


def pass_at_k(n: int, solved: int, k: int) -> float:
    """1 - C(n - solved, k) / C(n, k): the share of draws of k of n episodes that contain a solved one."""
    return 1.0 - math.comb(n - solved, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[Hashable], right: Sequence[float]) -> list[float]:
    """Entry k - 1: the share of draws of k answers in which the most frequent answer is right.

    If several are most frequent, one of them is taken at random, so the mean over them counts.

    Args:
        answers: one per episode, in canonical form; equal ones vote together.
        right: one per episode, 1 if it was solved, else 0. Equal answers that an environment judged differently count
            as their mean.
    """
    counts = Counter(answers)
    # For each number of times that an answer was given: the sum of `right` over such answers.
    worth: dict[int, float] = defaultdict(float)
    for answer, count in counts.items():
        worth[count] += sum(r for a, r in zip(answers, right, strict=True) if a == answer) / count
    chances = _chances(tuple(sorted(counts.values())))
    return [
        float(sum(worth[count] * chance[k] for count, chance in chances.items())) for k in range(len(answers))
    ]


@lru_cache(maxsize=4096)
def _chances(counts: tuple[int, ...]) -> Mapping[int, npt.NDArray[np.float64]]:
    """For each number of times that an answer was given: entry k - 1 is the chance that k draws elect it.

    `counts`: how often each different answer was given, sorted; n is their sum.
    """
    n = sum(counts)
    ways = np.array([math.comb(n, k) for k in range(1, n + 1)], dtype=np.float64)
    chances = {}
    for own in set(counts):
        others = list(counts)
        others.remove(own)
        won = np.zeros(n + 1)
        for votes in range(1, own + 1):
            drawn = _draws_of_others(others, votes, n)  # (votes of others, ties) -> number of draws
            elected = (drawn / (1.0 + np.arange(drawn.shape[1]))).sum(axis=1)
            won[votes:] += math.comb(own, votes) * elected[: n + 1 - votes]
        chances[own] = won[1:] / ways
    return chances


def _draws_of_others(others: Sequence[int], votes: int, n: int) -> npt.NDArray[np.float64]:
    """Entry [m, t]: how many ways m votes can fall to `others`, at most `votes` each, and t of them having so many."""
    most_ties = sum(count >= votes for count in others)
    draws = np.zeros((n + 1, most_ties + 1))
    draws[0, 0] = 1.0
    for count in others:
        longer = draws.copy()  # the answer gets no vote
        for got in range(1, min(count, votes) + 1):
            added = math.comb(count, got) * draws[: n + 1 - got]
            if got == votes:
                longer[got:, 1:] += added[:, :-1]
            else:
                longer[got:] += added
        draws = longer
    return draws


def final_answer(episode: Trajectory, marker: str | None) -> str | None:
    """The answer that votes: the environment's canonical form, else the text after `marker`, else the whole text.

    None for an episode without an answer; its vote agrees with no other.
    """
    if episode.final_answer is not None:
        return episode.final_answer
    if not episode.turns:
        return None
    text = episode.turns[-1].answer
    return (text.rpartition(marker)[2] if marker else text).strip()


def passes(instances: Sequence[Sequence[Trajectory]], interval: ShareInterval) -> dict[str, Estimate]:
    """pass@k by k, from 1 to the smallest number of episodes of an instance."""
    played = [(len(episodes), sum(e.success for e in episodes)) for episodes in instances]
    return {
        str(k): _estimate([pass_at_k(n, solved, k) for n, solved in played], interval)
        for k in range(1, min(n for n, _ in played) + 1)
    }


def majorities(
    instances: Sequence[Sequence[Trajectory]], marker: str | None, interval: ShareInterval
) -> dict[str, Estimate] | None:
    """majority@k by k, like `passes`.

    None if an episode of several turns has no final answer from its environment: after feedback, the text of the last
    turn alone says little.
    """
    if any(len(e.turns) > 1 and e.final_answer is None for episodes in instances for e in episodes):
        return None
    each = [_majority(episodes, marker) for episodes in instances]
    return {
        str(k): _estimate([shares[k - 1] for shares in each], interval)
        for k in range(1, min(map(len, each)) + 1)
    }


def _majority(episodes: Sequence[Trajectory], marker: str | None) -> list[float]:
    votes = [final_answer(episode, marker) for episode in episodes]
    answers: list[Hashable] = [(i,) if vote is None else vote for i, vote in enumerate(votes)]
    return majority_at_k(answers, [float(episode.success) for episode in episodes])


def _estimate(shares: Sequence[float], interval: ShareInterval) -> Estimate:
    """The mean of one share per instance, and its interval with each instance as one trial.

    A value between 0 and 1 varies at most as much as a success or failure of the same mean, so the interval for that
    number of trials covers; if k is the number of episodes played, it is exactly that of the successes.
    """
    value = math.fsum(shares) / len(shares)
    low, high = interval(min(value, 1.0) * len(shares), len(shares))
    return {"value": value, "low": low, "high": high}
