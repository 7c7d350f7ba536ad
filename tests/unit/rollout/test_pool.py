"""How a batch is shared among the workers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.errors import ClusterError
from rlpost.rollout import pool
from rlpost.rollout.pool import shares_of
from rlpost.types import EpisodeSpec


def specs_of(groups: list[int]) -> list[EpisodeSpec]:
    return [EpisodeSpec("v", "train", 0, i, group, 7, i) for i, group in enumerate(groups)]


@given(groups=st.lists(st.integers(0, 9), max_size=60), workers=st.integers(1, 7))
def test_every_episode_has_one_worker_and_few_groups_are_torn(groups: list[int], workers: int) -> None:
    shares = shares_of(specs_of(groups), workers)
    assert len(shares) == workers
    assert sorted(k for share in shares for k in share) == list(range(len(groups)))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    workers_of = {
        group: sum(any(groups[k] == group for k in share) for share in shares) for group in set(groups)
    }
    assert sum(count - 1 for count in workers_of.values()) <= workers - 1


def test_groups_stay_whole_where_they_divide_the_batch() -> None:
    assert shares_of(specs_of([0, 0, 1, 1, 2, 2, 3, 3]), 2) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    interleaved = shares_of(specs_of([0, 1, 0, 1]), 2)
    assert interleaved == [[0, 2], [1, 3]]


def test_fewer_episodes_than_workers_leave_some_idle() -> None:
    assert sorted(map(len, shares_of(specs_of([0, 1]), 3))) == [0, 1, 1]


def test_environments_are_closed_in_every_worker_and_what_went_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All within one deadline: a worker that hangs does not hold up the others for as long each."""
    waited = list[float]()

    def get(ref: Any, timeout_s: float, who: str) -> Any:
        waited.append(timeout_s)
        if isinstance(ref, Exception):
            raise ref
        return ref

    answers = [[], ["KeyError: 3"], ClusterError("dead"), []]
    workers = [SimpleNamespace(close=SimpleNamespace(remote=lambda said=said: said)) for said in answers]
    monkeypatch.setattr(pool, "get", get)
    whole = pool.RolloutPool.__new__(pool.RolloutPool)
    whole._actors = workers
    assert whole.close_environments() == ["rollout worker 1: KeyError: 3", "rollout worker 2: dead"]
    assert len(waited) == 4
    assert sorted(waited, reverse=True) == waited
    assert waited[0] <= pool.CLOSING_S
