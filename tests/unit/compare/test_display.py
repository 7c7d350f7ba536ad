"""What is said of the time left, and of a cell at work."""

from __future__ import annotations

from pathlib import Path

from rlpost.compare.display import last_line, time_left


def test_time_left_by_hand() -> None:
    seconds = {"init": [10.0], "ppo": [100.0, 140.0]}
    assert time_left({}, ["ppo"], 1) is None
    assert time_left(seconds, [], 1) == 0
    assert time_left(seconds, ["init", "ppo"], 1) == 10 + 120
    assert time_left(seconds, ["ppo", "ppo"], 2) == 120
    assert time_left(seconds, ["sft"], 1) == 250 / 3, "an arm without a whole cell: the mean of all"


def test_the_last_line_that_says_something(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text("x" * 5000 + "\niteration 3/8\n\n")
    assert last_line(log) == "iteration 3/8"
