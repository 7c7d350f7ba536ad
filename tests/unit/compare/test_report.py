"""The report of a comparison: whole whatever is there, failures first, and inert whatever a model wrote."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlpost.compare import results
from rlpost.compare.design.types import INIT, Cell, Comparison, Evaluation, Status
from rlpost.compare.report import pictures, sections
from rlpost.compare.report.findings import findings
from rlpost.compare.report.page import write
from rlpost.compare.report.view import View
from rlpost.compare.statistics.intervals import Interval
from rlpost.pages.images import Image
from rlpost.record.run_dir import RunDir
from rlpost.report import main
from tests.unit.compare.comparisons import comparison, done, evaluation, failed, missing
from tests.unit.episodes import episode, turn
from tests.unit.pages import Page, assert_inert, assert_told, open_in_browser

HOSTILE = (
    "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=alert(1)> | [a](http://x) `"
)
TRAINED, HELD_OUT = "faces_10", "faces_11_12_13"
MISREAD = ("RULE_MISREAD", "RULE_MISREAD", "RULE_MISREAD", "SYNTAX", "WRONG_VALUE", HOSTILE)


def scored(solved: int, n: int = 12, solved_at: int = 1, **fields: object) -> Evaluation:
    """The first `solved` of `n` instances; of the others, half apply the old rule."""
    outcomes = ["CORRECT"] * solved + [MISREAD[i % 6] for i in range(n - solved)]
    at = [solved_at if i % 2 else 1 for i in range(solved)] + [0] * (n - solved)
    flags = [i < solved for i in range(n)]
    return evaluation(flags, outcomes=tuple(outcomes), solved_at=tuple(at), **fields)


def cell(arm: str, seed: int, trained: int, held_out: int) -> Cell:
    shares = (0.0,) if arm == INIT else (0.5, 1.0)
    ends = {TRAINED: scored(trained, solved_at=3), HELD_OUT: scored(held_out)}
    return done(arm, seed, dict.fromkeys(shares, ends))


def full() -> Comparison:
    cells = [cell(INIT, s, 3, 2) for s in (0, 1)] + [cell("sft", s, 9, 1) for s in (0, 1)]
    broken = replace(failed("ppo", 1), error=HOSTILE)
    base = {TRAINED: scored(1)}
    notes = {"command": "python -m rlpost.run experiment=x", "versions": HOSTILE}
    return comparison(
        [*cells, cell("ppo", 0, 7, 6), broken], (0, 1), (TRAINED, HELD_OUT), notes=notes, base=base
    )


def test_the_command_writes_the_pages_of_a_comparison(tmp_path: Path) -> None:
    results.write(full(), tmp_path)
    write_episodes(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert "FAILED: ppo, seed 1" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").is_file()


def write_episodes(folder: Path) -> None:
    """Of seed 0: deal 0 is solved by ppo only, which was scored twice; deal 1 by all."""
    for arm, answer in ((INIT, "no"), ("sft", HOSTILE), ("ppo", "(1+2)*8")):
        run_dir = RunDir.create(folder / "cells" / f"{arm}-0", arm, 0, "train_variant: faces_10\n")
        solved = arm == "ppo"
        first = episode(
            turn("CORRECT" if solved else "SYNTAX", answer=answer), success=solved, variant=HELD_OUT
        )
        second = episode(turn("CORRECT", answer="7"), success=True, index=1, variant=HELD_OUT)
        run_dir.write_evaluation("after", HELD_OUT, "sampled", [second, first])
        run_dir.write_evaluation("before", HELD_OUT, "sampled", [second])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    write_episodes(folder)
    return write(full(), folder)


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_failures_come_first_then_the_answers(page: Page) -> None:
    begun = page.text.index("test")
    places = [page.text.index(said, begun) for said in ("FAILED: ppo, seed 1", "SFT", "Differences", "Cells")]
    assert places == sorted(places)
    assert re.search(r"Did SFT memorize\?", page.text)
    assert re.search(r"Did RL \(PPO\) generalize\?", page.text)


def test_the_page_is_inert_and_told_in_words(report: Path, page: Page) -> None:
    assert_inert(page, report.read_text(encoding="utf-8"))
    assert_told(page)
    assert (
        len(page.all("img")) == 2 + 2 + 1 + 2 + 4
    )  # success, differences, causes, turns, success in two other units
    labels = " ".join(image["alt"] or "" for image in page.all("img"))
    assert "faces_11_12_13 (held out), against FLOPs since init." in labels
    assert "faces_11_12_13 (held out), ppo: solved 50.0%, rule misread 25.0%" in labels


def test_success_against_rollouts_is_shown_where_every_record_counts_them(
    report: Path, tmp_path: Path
) -> None:
    """The records of `full` are of before that, and have none."""
    title = "Success against rollouts and expert examples"
    assert title not in report.read_text(encoding="utf-8")

    def counted(each: Cell) -> Cell:
        points = (
            replace(p, compute=replace(p.compute, rollouts=round(640 * p.share), correct_rollouts=7))
            for p in each.points
        )
        return replace(each, points=tuple(points))

    made = full()
    made = replace(made, cells=tuple(map(counted, made.cells)), matched_on="correct_rollouts")
    told = write(made, tmp_path).read_text(encoding="utf-8")
    assert title in told
    assert "may spend the same correct rollouts and expert examples" in " ".join(told.split())
    assert ">640<" in told, "the cells' table"


def test_what_others_wrote_stays_text(page: Page) -> None:
    shown = page.text.count(HOSTILE)
    assert shown >= 1 + 1 + 1 + 1  # the error twice, a note, an answer; the outcome in what the pictures say
    assert page.text.count("document.title") == shown


def test_tables_hold_the_numbers(page: Page) -> None:
    text = " ".join(page.text.split())
    assert "faces_10about faces_10" in text
    assert "58.3%" in text  # 7 of 12
    assert "faces_10trained8.3% [1.5, 35.4]25.0%" in text  # the bare model: 1 of 12
    assert "1 seed, 1 missing" in text
    assert "of 22 failures" in text  # sft, held out, two seeds
    assert "within 1within 2within 3gain, points" in text


def test_the_same_deal_stands_side_by_side(page: Page) -> None:
    assert page.text.index("deal 0: solved by ppo only") < page.text.index("deal 1: solved")
    assert "(1+2)*8" in page.text


def test_a_finding_stands_whole_whatever_its_words_hold(quick: None, tmp_path: Path) -> None:
    """A full stop in the name of a variant does not end the sentence that is printed bold, nor does a title matter."""
    dotted = "v1. 2"
    cells = [
        done(arm, 0, {share: {TRAINED: scored(3), dotted: scored(n)}})
        for arm, share, n in ((INIT, 0.0, 1), ("sft", 1.0, 1))
    ]
    made = comparison(cells, (0,), (TRAINED, dotted))
    html = write(made, tmp_path).read_text(encoding="utf-8")
    strong = re.findall(r"<strong>(.*?)</strong>", html)
    assert strong[0].startswith("Did SFT memorize? Unclear: no held-out rule")
    assert strong[0].endswith("in the one training seed that there is.")
    assert "<p>Failures on v1. 2 that are the trained rule applied: the start" in html


def test_differences_are_told_at_every_point_of_the_budget() -> None:
    ways = {INIT: {0.0: 3}, "sft": {0.5: 6, 1.0: 9}, "ppo": {0.5: 12, 1.0: 6}}
    cells = [
        done(arm, 0, {share: {TRAINED: scored(solved)} for share, solved in way.items()})
        for arm, way in ways.items()
    ]
    made = comparison(cells, (0,), (TRAINED,))
    (along,) = (s for s in sections.results(View(made, findings(made))) if "along the budget" in s.title)
    (table,) = along.tables
    assert table.head[2:] == ("50% of the budget", "100% of the budget")
    shown = {contrast: [float(text.split()[0]) for text in row] for _, contrast, *row in table.rows}
    assert shown == {"sft - init": [25.0, 50.0], "ppo - init": [75.0, 25.0], "ppo - sft": [50.0, -25.0]}
    ends = [replace(cell, points=cell.points[-1:]) for cell in made.cells]
    only = replace(made, cells=tuple(ends))
    assert not any("along" in s.title for s in sections.results(View(only, findings(only))))


def test_the_same_instances_stand_between_results_and_set_up(page: Page) -> None:
    titles = ["Success", "Differences", "The same instances, side by side", "Cells", "Set-up"]
    headings = [page.text.index(f"\n{title}\n") for title in titles]
    assert headings == sorted(headings)


def test_the_markdown_has_the_same_tables(report: Path, page: Page) -> None:
    text = report.with_suffix(".md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "](http" not in text
    assert "| faces_10<br>about faces_10 | trained | 8.3%" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == len(page.all("table"))
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_in_a_browser_nothing_is_fetched_and_nothing_goes_wrong(report: Path, tmp_path: Path) -> None:
    opened = open_in_browser(report, tmp_path)
    assert "<title>test</title>" in opened.dom
    assert opened.console == []
    assert opened.requests == []


def test_the_browser_would_have_told(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><title>x</title><img src=http://127.0.0.1:9/x>"
        "<script>document.title = 'owned'; nothing()</script>"
    )
    opened = open_in_browser(page, tmp_path)
    assert "<title>owned</title>" in opened.dom
    assert any("nothing is not defined" in line for line in opened.console)
    assert opened.requests == ["http://127.0.0.1:9/x"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn, but not rendered, which takes most of the time."""

    monkeypatch.setattr(pictures, "drawn", lambda figure, said: Image("<svg/>", said))


def steps() -> Comparison:
    """Navigation: a start that gets no step right, and an arm that gets some."""
    ends = {INIT: (0, 0.0), "ppo": (4, 0.625)}
    cells = [
        done(arm, 0, {share: {"absolute": scored(solved, step_accuracy=accuracy)}})
        for (arm, (solved, accuracy)), share in zip(ends.items(), (0.0, 1.0), strict=True)
    ]
    return comparison(cells, (0,), ("absolute",), env="navigation")


CASES: dict[str, tuple[Callable[[], Comparison], list[str]]] = {
    "one seed": (
        lambda: comparison([cell(INIT, 4, 3, 2), cell("sft", 4, 9, 1)], (4,), (TRAINED, HELD_OUT)),
        ["1 seed"],
    ),
    "all failed": (
        lambda: comparison([failed(INIT, 0), failed("sft", 0)], (0,), (TRAINED, HELD_OUT)),
        ["FAILED", "LearnerError: loss not finite"],
    ),
    "nothing run": (
        lambda: comparison([missing(INIT, 0)], (0,), (TRAINED,), arms=("sft", "ppo")),
        ["missing"],
    ),
    "no init": (
        lambda: comparison(
            [failed(INIT, 0), cell("sft", 0, 9, 1), cell("ppo", 0, 8, 5)], (0,), (TRAINED, HELD_OUT)
        ),
        ["no pair"],
    ),
    "init alone": (
        lambda: comparison([cell(INIT, 0, 3, 2)], (0,), (TRAINED, HELD_OUT), arms=("ppo",)),
        ["25.0%"],
    ),
    "nothing held out": (
        lambda: comparison(
            [done(INIT, 0, {0.0: {"a": scored(3)}}), done("ppo", 0, {1.0: {"a": scored(12)}})], (0,), ("a",)
        ),
        ["no failures"],
    ),
    "steps": (steps, ["right steps 0.0%", "right steps 62.5%"]),
}


def test_the_pages_say_nothing_of_a_rule_that_the_environment_cannot_tell(tmp_path: Path) -> None:
    page = write(replace(full(), causes={}), tmp_path).read_text(encoding="utf-8")
    for text in (page, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "What went wrong" in page
        assert not re.search("rule applied|rule misread|memorization figure", text)


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_there_is_shown(quick: None, case: str, tmp_path: Path) -> None:
    make, expected = CASES[case]
    page = Page(write(make(), tmp_path).read_text(encoding="utf-8"))
    assert [said for said in expected if said not in page.text] == []
    assert_told(page)
    assert all(each.run_dir in page.text for each in make().cells)


@st.composite
def comparisons(draw: st.DrawFn) -> Comparison:
    """Any arms, seeds and statuses; cells that are done may have been scored on some rules and points only."""
    arms = draw(st.lists(st.sampled_from(["sft", "ppo", "grpo"]), unique=True, min_size=1))
    variants = (TRAINED, HELD_OUT, "target_30")[: draw(st.integers(1, 3))]
    seeds, cells = tuple(range(draw(st.integers(1, 3)))), []
    for arm in (INIT, *arms):
        for seed in seeds:
            status = draw(st.sampled_from([Status.DONE, Status.DONE, Status.FAILED, Status.MISSING]))
            shares = [0.0] if arm == INIT else draw(st.lists(st.sampled_from([0.25, 0.5, 1.0]), unique=True))
            of = {v: scored(draw(st.integers(0, 12))) for v in variants if draw(st.booleans())}
            whole = done(arm, seed, dict.fromkeys(sorted(shares), of))
            cells.append(
                {Status.DONE: whole, Status.FAILED: failed(arm, seed)}.get(status, missing(arm, seed))
            )
    return comparison(cells, seeds, variants, arms=tuple(arms))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(comparisons())
def test_any_comparison_has_a_report(quick: None, tmp_path: Path, found: Comparison) -> None:
    page = Page(write(found, tmp_path).read_text(encoding="utf-8"))
    assert_told(page)
    assert all(each.run_dir in page.text for each in found.cells)


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.0, "0"), (999.0, "999"), (1500.0, "1.5k"), (2.5e13, "25T"), (-3e6, "-3M"), (0.25, "0.25")],
)
def test_large_numbers_are_short(x: float, text: str) -> None:
    assert pictures.short(x) == text


def test_points_by_hand() -> None:
    assert pictures.points(Interval(0.035, -0.01, 0.0814)) == "+3.5 [-1.0, +8.1]"


def test_turns_are_told_as_they_are_drawn(quick: None) -> None:
    told = pictures.turns("faces_7", {INIT: (0.25, 0.5), "ppo": (0.75,)}).alt
    assert told == "faces_7, within so many attempts. init: 25.0%, 50.0%. ppo: 75.0%."
