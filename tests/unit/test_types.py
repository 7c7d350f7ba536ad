"""The worked example of rlpost.types, to the letter."""

from __future__ import annotations

from rlpost.types import Ending, Finish, Trajectory, Turn


def turn(context: tuple[int, ...], answer: tuple[int, ...], reward: float) -> Turn:
    return Turn(context, answer, (-0.5,) * len(answer), "o", "a", Finish.STOP, reward, "X", 0)


def test_alignment_of_the_worked_example() -> None:
    turns = (turn((1, 2, 3), (4, 5), -1.0), turn((6, 7), (8, 9, 10), 5.0))
    episode = Trajectory("e", "v", "train", "i", 0, 0, 0, 0, turns, Ending.TERMINATED, True)
    assert episode.token_ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert episode.loss_mask == [0, 0, 0, 1, 1, 0, 0, 1, 1, 1]
    assert episode.total_reward == 4.0
    assert episode.answer_tokens == 5
