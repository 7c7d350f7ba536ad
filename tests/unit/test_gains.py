"""Paired differences of success, against sums by hand and scipy, and what is said of them."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlpost.envs.terminal import plain_console
from rlpost.pages.console import results_table
from rlpost.record.gains import gain, gains
from rlpost.record.metrics import evaluation
from rlpost.record.run_dir import RunDir
from rlpost.record.summary import Trend, changes, headlines, trend
from rlpost.types import Trajectory
from tests.unit.episodes import episode, turn


def played(*solved: tuple[str, bool]) -> list[Trajectory]:
    return [
        replace(episode(turn(), success=success), instance=name, episode=i)
        for i, (name, success) in enumerate(solved)
    ]


def test_by_hand() -> None:
    """Three instances, one twice: differences 1, 0.5 and 0; with 1 and -1 their t interval has 4 degrees of freedom."""
    before = played(("a", False), ("b", False), ("b", False), ("c", True))
    after = played(("b", True), ("a", True), ("b", False), ("c", True), ("other", True))
    found = gain(before, after)
    assert found is not None
    assert (found["instances"], found["gain"]) == (3, pytest.approx(0.5))
    values = [1.0, 0.5, 0.0, 1.0, -1.0]
    mean = sum(values) / 5
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / 4 / 5)
    assert found["low"] == pytest.approx(mean - 2.776445 * error, rel=1e-5)
    assert found["high"] == pytest.approx(mean + 2.776445 * error, rel=1e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_equals_scipys_interval_and_turns_with_the_ends(pairs: list[tuple[bool, bool]]) -> None:
    ends = [played(*((str(i), pair[k]) for i, pair in enumerate(pairs))) for k in range(2)]
    found, back = gain(*ends), gain(*ends[::-1])
    assert found is not None
    assert back is not None
    values = [*(int(b) - int(a) for a, b in pairs), 1, -1]
    low, high = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert (back["low"], back["high"]) == pytest.approx((-high, -low))
    assert low < 0 < high or trend(found) is not Trend.UNCLEAR


def test_where_nothing_changed_the_interval_has_a_width() -> None:
    found = gain(*[played(*((str(i), i % 2 == 0) for i in range(40)))] * 2)
    assert found is not None
    assert found["gain"] == 0
    assert found["low"] < -0.03
    assert trend(found) is Trend.UNCLEAR


def test_without_common_instances_there_is_none() -> None:
    assert gain(played(("a", True), ("b", True)), played(("c", True), ("a", False))) is None
    assert gain(played(("", True), ("", True)), played(("", True), ("", False))) is None


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    """Forty instances, of which training added twelve under one rule and none under the other."""
    run_dir = RunDir.create(tmp_path / "run", "demo", 0, "seed: 0\n")
    found: dict[str, Any] = {"eval": {}, "variants": {}, "train_variant": "faces_10"}
    for stage, added in (("before", 0), ("after", 12)):
        for variant in ("faces_10", "faces_7"):
            right = 10 + (added if variant == "faces_10" else 0)
            episodes = played(*((str(i), i < right) for i in range(40)))
            run_dir.write_evaluation(stage, variant, "sampled", episodes)
            found["eval"].setdefault(stage, {})[variant] = {"sampled": evaluation(episodes)}
    return found | {"gains": gains(run_dir, found)}


def test_a_difference_is_told_that_two_intervals_would_leave_open(summary: dict[str, Any]) -> None:
    rose, same = headlines(summary)
    assert rose.startswith(
        "faces_10 (trained), sampled: success rose, from 25.0% [14, 40] to 55.0% [40, 69]: +30.0"
    )
    assert "on the same 40 instances" in rose
    assert "did not clearly change, from 25.0% [14, 40] to 25.0% [14, 40]: +0.0 points" in same
    console = plain_console(file=(out := io.StringIO()), width=80)
    results_table(console, summary)
    assert out.getvalue().splitlines()[-2:] == changes(summary)
    assert changes(summary)[0].startswith("faces_10, sampled: success rose, +30.0 points [+1")


def test_an_older_summary_says_what_it_said(summary: dict[str, Any]) -> None:
    del summary["gains"]
    assert changes(summary) == []
    assert headlines(summary)[0].endswith("the intervals overlap.")
