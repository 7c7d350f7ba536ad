"""An episode is replayed as it was reset: by its seed, or by its seed and its instance's name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.pages.replay import picture
from tests.unit.episodes import episode

FACES_7 = {"variant": "faces_7", "split": "eval"}


class Drawn(GeneralPoints):
    def picture(self) -> str:
        return f"<svg>{' '.join(self.deal.ranks)}</svg>"


@pytest.mark.parametrize("seed", range(3))
def test_an_instance_that_was_named_is_named_again(seed: int) -> None:
    env = Drawn()
    name = env.instance_names("faces_7", "eval")[seed]
    env.reset(seed=seed, options={**FACES_7, "instance": name})
    played = replace(episode(variant="faces_7"), instance=name)
    assert picture(Drawn(), played, seed, named=True) == env.picture()
    assert picture(Drawn(), played, seed) is None  # the seed alone draws another


def test_an_instance_that_was_drawn_is_drawn_again() -> None:
    env = Drawn()
    _, info = env.reset(seed=5, options=FACES_7)
    played = replace(episode(variant="faces_7"), instance=info["instance"])
    assert picture(Drawn(), played, 5) == env.picture()
