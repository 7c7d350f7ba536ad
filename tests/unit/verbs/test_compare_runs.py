"""The page of several runs: what it says, what it pairs, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlpost.command.main import main
from rlpost.record.gains import gain
from rlpost.record.run_dir import RunDir, iteration_name
from rlpost.verbs import runs_page
from tests.unit.pages import Page, assert_inert, assert_told
from tests.unit.verbs import recorded

FEW = [True] * 10 + [False] * 30
MORE = [True] * 30 + [False] * 10


@pytest.fixture
def a(tmp_path: Path) -> RunDir:
    return recorded.run(tmp_path / "a", stages={"before": FEW, "after": FEW})


@pytest.fixture
def b(tmp_path: Path) -> RunDir:
    return recorded.run(
        tmp_path / "b", "seed=1", "algo.learning_rate=1e-4", stages={"before": FEW, "after": MORE}
    )


def page_of(tmp_path: Path, *runs: RunDir) -> Page:
    file = tmp_path / "page.html"
    assert main(["compare-runs", *(str(run.path) for run in runs), "-o", str(file)]) == 0
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    assert_inert(page, html)
    assert_told(page)
    return page


def says(page: Page, title: str, told: str) -> bool:
    """Whether `told` stands below a heading; between cells there is no blank in a page's text."""
    return "".join(told.split()) in "".join(page.text.partition(f"\n{title}\n")[2].split())


def test_settings_that_differ_and_no_others(tmp_path: Path, a: RunDir, b: RunDir) -> None:
    page = page_of(tmp_path, a, b)
    runs = runs_page.read([a.path, b.path])
    assert list(runs_page._settings(runs)) == [["seed", "0", "1"], ["algo.learning_rate", "0.0015", "0.0001"]]
    assert says(page, "Settings that differ", "algo.learning_rate 0.0015 0.0001")
    assert "algo.kl_coef" not in page.text


def test_differences_are_paired_on_the_same_instances(tmp_path: Path, a: RunDir, b: RunDir) -> None:
    """Against record.gains on the episodes: 20 of 40 deals were solved by the second run alone."""
    found = gain(recorded.played(FEW), recorded.played(MORE))
    assert found is not None
    told = f"+50.0 points [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    rows = list(runs_page.differences(runs_page.read([a.path, b.path])))
    assert [(row["variant"], row["difference"], row["said"]) for row in rows] == [
        ("faces_10", told, "higher"),
        ("faces_11_12_13", told, "higher"),
    ]
    back = next(runs_page.differences(runs_page.read([b.path, a.path])))
    assert (back["difference"].startswith("-50.0"), back["said"]) == (True, "lower")
    assert told in page_of(tmp_path, a, b).text


def test_evaluations_have_intervals_and_numbers(tmp_path: Path, a: RunDir, b: RunDir) -> None:
    page, few, more = (
        page_of(tmp_path, a, b),
        "25.0% [14, 40] of 40 episodes",
        "75.0% [60, 86] of 40 episodes",
    )
    assert says(page, "Success", f"faces_10 sampled before {few} {few}")
    assert says(page, "Success", f"faces_10 sampled after {few} {more}")


def test_runs_of_differing_environments_are_shown_without_pairing(
    tmp_path: Path, a: RunDir, b: RunDir
) -> None:
    b.config.write_text(b.config.read_text().replace("verify_iter: 1", "verify_iter: 5"))
    page = page_of(tmp_path, a, b)
    assert "Not paired: env_args differs" in page.text
    assert " points [" not in page.text
    assert "75.0% [60, 86]" in page.text
    b.config.write_text(b.config.read_text().replace("env: generalpoints", "env: navigation"))
    assert "Not paired: env differs" in page_of(tmp_path, a, b).text


def test_without_common_instances_nothing_is_paired(tmp_path: Path, a: RunDir) -> None:
    other = recorded.run(tmp_path / "c", stages={"after": [True]})
    page = page_of(tmp_path, a, other)
    assert "nothing to pair" in page.text


def test_curves_have_every_run_and_time_and_tokens_are_sums(tmp_path: Path, a: RunDir, b: RunDir) -> None:
    c = recorded.run(tmp_path / "c", "seed=2", finished=False)
    for run in (a, b, c):
        run.write_evaluation(iteration_name(1), "faces_10", "sampled", recorded.played(FEW))
    page = page_of(tmp_path, a, b, c)
    pictures = [image["alt"] or "" for image in page.all("img")]
    success = next(alt for alt in pictures if alt.startswith("Success in training"))
    assert [f"{name}: from 10.0% at 1 to 20.0% at 3" in success for name in "abc"] == [True] * 3
    assert any("evaluated on the way" in alt and "25.0% at 2" in alt for alt in pictures)
    costs = "wall time 1:00 1:00 1:00 iterations 3 3 3 time: rollout 6.0 s 6.0 s 6.0 s"
    assert says(page, "Time and tokens", f"{costs} tokens sampled 3,000 3,000 3,000 tokens trained on 1,500")
    assert "Not finished (no summary.json); what is on record is shown: c." in page.text


def test_what_a_run_did_not_measure_is_not_made_up(tmp_path: Path, a: RunDir) -> None:
    bare = RunDir.create(tmp_path / "bare", "bare", 0, a.config.read_text())
    page = page_of(tmp_path, a, bare)
    assert says(page, "Time and tokens", "tokens sampled 3,000 - tokens trained on 1,500 -")
    assert any("bare: not measured" in (image["alt"] or "") for image in page.all("img"))


def test_names_are_told_apart(tmp_path: Path) -> None:
    assert runs_page._names([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]


def refused(capsys: pytest.CaptureFixture[str], code: int, *argv: str | Path) -> str:
    assert main(["compare-runs", *map(str, argv)]) == code
    return capsys.readouterr().err


def test_what_is_no_run_is_refused_by_name(
    tmp_path: Path, a: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "page.html"
    err = refused(capsys, 1, a.path, tmp_path / "empty", tmp_path / "gone", "-o", file)
    assert f"{tmp_path / 'empty'}, {tmp_path / 'gone'}" in err
    assert "no run" in err
    assert "named twice" in refused(capsys, 2, a.path, tmp_path / "empty" / ".." / "a", "-o", file)
    assert "nothing to be compared with" in refused(capsys, 2, a.path, "-o", file)
    assert "the page is HTML" in refused(capsys, 2, a.path, tmp_path / "b", "-o", a.config)
    path = a.trajectories_file("eval-after-faces_10-sampled")
    path.write_text("no json\n")
    assert str(path) in refused(capsys, 1, a.path, recorded.run(tmp_path / "d").path, "-o", file)
    assert not file.exists()
