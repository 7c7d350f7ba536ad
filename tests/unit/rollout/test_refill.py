"""Dynamic sampling with a scripted player: what is replaced, by what, how often, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from rlpost.config.schema import AlgoName, Config
from rlpost.rollout.dynamic_sampling import collect, is_flat
from rlpost.rollout.specs import training_specs
from rlpost.types import Ending, EpisodeSpec, Trajectory
from tests.learner_data import with_algorithm
from tests.unit.episodes import episode, turn


def _config(episodes: int = 6, group_size: int = 2, max_refills: int = 3) -> Config:
    cfg = with_algorithm(Config(), AlgoName.dapo)
    cfg.rollout.episodes, cfg.rollout.group_size, cfg.algo.max_refills = episodes, group_size, max_refills
    return cfg


class Player:
    """Plays specs; the reward of an episode is `reward(group, index in the group)`."""

    def __init__(self, reward: Callable[[int, int], float], size: int = 2) -> None:
        self.reward, self.size = reward, size
        self.asked: list[list[EpisodeSpec]] = []

    def __call__(self, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        self.asked.append(list(specs))
        return [
            replace(
                episode(turn(reward=self.reward(s.group, s.episode % self.size)), index=s.episode),
                group=s.group,
                seed=s.seed,
            )
            for s in specs
        ]


def test_flat_groups_are_replaced_by_new_ones_in_their_place() -> None:
    """Groups 1, 2 are flat; of their successors 3, 4 the latter is; its successor 5 is not."""
    player = Player(lambda group, i: 0.0 if group in (1, 2, 4) else float(i))
    found = collect(player, _config(), 7)
    assert [[s.group for s in asked] for asked in player.asked] == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4], [5, 5]]
    assert [t.group for t in found.batch] == [0, 0, 3, 3, 5, 5]
    assert [t.group for t in found.played] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert found.metrics == {
        "refill/rounds": 2,
        "refill/groups_played": 6,
        "refill/groups_replaced": 3,
        "refill/groups_flat": 0,
    }


def test_every_group_has_its_own_deal_and_dice() -> None:
    player = Player(lambda group, i: 0.0)
    collect(player, _config(), 7)
    specs = [spec for asked in player.asked for spec in asked]
    assert player.asked[0] == training_specs(_config(), 7)
    assert len({s.seed for s in specs}) == len({s.episode for s in specs}) == len(specs)
    assert len({s.env_seed for s in specs}) == len(specs) / 2


def test_what_is_flat_at_the_bound_stays_and_is_counted() -> None:
    player = Player(lambda group, i: 1.0)
    found = collect(player, _config(max_refills=2), 0)
    assert len(player.asked) == 3
    assert [t.group for t in found.batch] == [6, 6, 7, 7, 8, 8]
    assert found.metrics["refill/groups_flat"] == 3
    assert found.metrics["refill/groups_replaced"] == 6


def test_without_dynamic_sampling_the_batch_is_played_once() -> None:
    cfg = _config()
    cfg.algo.dynamic_sampling = False
    player = Player(lambda group, i: 1.0)
    found = collect(player, cfg, 0)
    assert len(player.asked) == 1
    assert found.batch == found.played
    assert found.metrics == {}


@pytest.mark.parametrize("ending", [Ending.ENV_ERROR, Ending.ENV_TIMEOUT])
def test_broken_episodes_do_not_make_a_group_varied(ending: Ending) -> None:
    good, broken = episode(turn(reward=1.0)), episode(ending=ending, error="no")
    assert is_flat([good, broken])
    assert is_flat([good])
    assert not is_flat([good, episode(turn(reward=2.0)), broken])


def test_rounding_does_not_make_a_group_varied() -> None:
    """0.1 + 0.2 is a unit in the last place above 0.3."""
    assert is_flat([episode(turn(reward=0.3)), episode(turn(reward=0.1), turn(reward=0.2))])
    assert not is_flat([episode(turn(reward=0.3)), episode(turn(reward=0.31))])
    assert is_flat([])
