"""The report: one page, whole, honest, and inert whatever a model wrote."""

from __future__ import annotations

import math
import random
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

from rlpost.envs import registry
from rlpost.errors import OutputError
from rlpost.pages import figures, replay
from rlpost.pages.images import Image
from rlpost.pages.run_page import write_report
from rlpost.record import run_error, spectrum
from rlpost.record.metrics import evaluation
from rlpost.record.run_dir import RunDir, evaluation_name
from rlpost.record.spectrum import ModuleSpectrum, Spectrum
from rlpost.report import main
from rlpost.rollout.specs import evaluation_env_seed
from rlpost.types import Ending, Finish, Trajectory
from tests.unit.episodes import episode, turn
from tests.unit.pages import Page, assert_inert, assert_told, decoded

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>]]>{{ 7*7 }} $\\frac{1}$ &amp; \ud83d"
CONFIG = "name: demo\ntrain_variant: faces_10\nmodel: <b>tiny</b>\n"


def deals(solved: set[int], variant: str, n: int = 40, answer: str = "formula: 1+2") -> list[Trajectory]:
    return [
        episode(
            turn("SYNTAX", -2.0, tokens=6, finish=Finish.LENGTH, observation=f"cards of {i}", answer=answer),
            turn(
                "CORRECT" if i in solved else "WRONG_VALUE",
                5.0 if i in solved else -1.0,
                observation="once more",
            ),
            success=i in solved,
            ending=Ending.TERMINATED if i in solved else Ending.TRUNCATED,
            index=i,
            variant=variant,
        )
        for i in range(n)
    ]


STAGES = {
    ("before", "faces_10"): deals(set(range(4)), "faces_10", answer=HOSTILE),
    ("after", "faces_10"): deals(set(range(2, 30)), "faces_10"),
    ("before", "faces_11_12_13"): deals({1, 2}, "faces_11_12_13"),
    ("after", "faces_11_12_13"): deals({1, 2, 3}, "faces_11_12_13"),
}


def metrics_line(i: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "iteration": i - 1,
        "success": 0.1 + i / 40,
        "reward": -1 + i / 10,
        "kl_reference": i / 1000,
    }
    line |= {"logprob_gap": 0.01 / i, "answer_tokens": 40.0 + math.sin(i), "cut_share": 0.02}
    if i > 2:
        line |= {"entropy": 1.5 - i / 40, "approx_kl": 0.002, "explained_variance": 1 - 1 / i}
    return line | {"seconds/rollout": 5.0, "seconds/update": 3.0, "seconds/other": 0.5, "seconds/total": 8.5}


def start(folder: Path) -> RunDir:
    run_dir = RunDir.create(folder / "demo" / "20250101-000000-0", "demo", 0, CONFIG)
    run_dir.write_versions()
    return run_dir


@pytest.fixture
def started(tmp_path: Path) -> RunDir:
    return start(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    started = start(tmp_path_factory.mktemp("finished"))
    started.append_metrics({"loss": 2.0, "seconds/sft": 10.0, "seconds/total": 10.0})
    for i in range(1, 21):
        started.append_metrics(metrics_line(i))
    stages: dict[str, Any] = {}
    for (stage, variant), episodes in STAGES.items():
        started.write_trajectories(evaluation_name(stage, variant, "sampled"), episodes)
        result = evaluation(episodes)
        stages.setdefault(stage, {})[variant] = {**result, "sampled": result}
    started.write_summary(
        {
            "eval": stages,
            "variants": {
                "faces_10": {"held_out": False, "summary": "J, Q and K count as 10"},
                "faces_11_12_13": {"held_out": True, "summary": "J, Q, K count as 11, 12, 13"},
            },
            "train_variant": "faces_10",
            "iterations": 20,
            "seconds": 180.0,
            "swap_seconds_median": 0.031,
            "logprob_gap_mean": 0.0123,
        }
    )
    return started


@pytest.fixture(scope="module")
def page(finished: RunDir) -> Page:
    return page_of(finished)


def page_of(run_dir: RunDir, own_code: bool = False) -> Page:
    assert write_report(run_dir, own_code) == run_dir.report
    return Page(run_dir.report.read_text(encoding="utf-8"))


def test_the_page_answers_first(page: Page) -> None:
    said = page.text.index(
        "faces_10 (trained), sampled: success rose, from 10.0% [4, 23] to 70.0% [55, 82];"
        " the intervals do not overlap."
    )
    assert "faces_11_12_13 (held out), sampled: success did not clearly change" in page.text
    assert said < page.text.index("Where the time went")
    assert "did not finish" not in page.text
    assert "adapter swap, median: 0.031 s" in page.text


def test_the_page_needs_nothing_else_and_runs_nothing(finished: RunDir, page: Page) -> None:
    assert_inert(page, finished.report.read_text(encoding="utf-8"))


def test_what_a_model_wrote_stays_text(page: Page) -> None:
    assert (
        "<script>alert('x')</script><img src=x onerror=alert(1)>]]>{{ 7*7 }} $\\frac{1}$ &amp; " in page.text
    )
    assert "model: <b>tiny</b>" in page.text
    assert not page.all("b")


def test_figures_are_told_in_words(page: Page) -> None:
    pictures = page.all("img")
    assert_told(page)
    # Evaluations, curves, supervised loss, time, outcomes of two variants.
    assert len(pictures) == 1 + 8 + 1 + 1 + 2
    labels = " ".join(picture["alt"] or "" for picture in pictures)
    assert "success: from 12.5% at 1 to 60.0% at 20, lowest 12.5%, highest 60.0%." in labels
    # 4, 28, 2 and 3 of 40 deals.
    assert (
        "faces_10, sampled: 10.0% at 0, 70.0% at 20. faces_11_12_13, sampled: 5.0% at 0, 7.5% at 20."
        in labels
    )
    assert "rollout 100.0 s, update 60.0 s, sft 10.0 s, other 10.0 s." in labels
    assert "before: CORRECT 5.0%, SYNTAX 50.0%, WRONG_VALUE 45.0%" in labels


def test_the_same_deals_stand_side_by_side(page: Page) -> None:
    assert "deal 4: newly solved" in page.text
    assert "deal 0: lost" in page.text
    assert "deal 30: not solved" in page.text


def test_the_page_of_ones_own_data_speaks_of_neither_rules_nor_deals(started: RunDir) -> None:
    """GeneralPoints has rules and deals; what others have nobody knows."""
    for stage in ("before", "after"):
        rows = [
            replace(episode(turn("WRONG"), index=i, variant="default"), instance=f"row {i}") for i in range(4)
        ]
        started.write_trajectories(evaluation_name(stage, "default", "sampled"), rows)
    started.append_metrics(metrics_line(1))
    shown = page_of(started).text
    assert "row 0: not solved" in shown
    assert "default (not trained), sampled" in shown
    assert not re.search(r"\brules?\b|\bdeals?\b", shown.partition("config.yaml")[0], re.IGNORECASE)


def test_evaluations_on_the_way_stand_where_they_were_made(started: RunDir) -> None:
    for i in range(1, 5):
        started.append_metrics(metrics_line(i))
    for stage, solved in {
        "before": {0},
        "warm": {0, 1},
        "iteration-000001": {0, 1, 2},
        "after": set(),
    }.items():
        started.write_evaluation(stage, "faces_10", "greedy", deals(solved, "faces_10", n=4))
    labels = " ".join(picture["alt"] or "" for picture in page_of(started).all("img"))
    assert "faces_10, greedy: 25.0% at 0, 50.0% at 0, 75.0% at 2, 0.0% at 4." in labels


def test_one_evaluation_is_no_curve(started: RunDir) -> None:
    started.write_evaluation("before", "faces_10", "greedy", deals({0}, "faces_10", n=4))
    assert not [i for i in page_of(started).all("img") if "evaluated" in (i["alt"] or "")]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.integers(1, 60))
def test_a_thinned_curve_has_few_points_and_the_same_mean(values: list[float], most: int) -> None:
    line = figures.Series("x", list(range(len(values))), values)
    thin = figures.thinned(line, most)
    assert len(thin.xs) == len(thin.ys) <= most
    size = -(-len(values) // most)
    weights = [min(size, len(values) - i) for i in range(0, len(values), size)]
    total = math.fsum(w * y for w, y in zip(weights, thin.ys, strict=True))
    assert math.isclose(total, math.fsum(values), rel_tol=1e-9, abs_tol=1e-3)


@pytest.mark.parametrize("lines", [1, 2])
def test_a_single_iteration_has_its_own_number_on_the_axis(lines: int) -> None:
    drawn = figures.curve("Reward", [figures.Series("reward", [7], [0.5])] * lines, "iteration")
    ticks = re.findall(r"<text[^>]*>([^<]+)</text>", drawn.svg.partition(">iteration<")[0])
    assert ticks == ["7"]


def test_writing_twice_gives_the_same_bytes(finished: RunDir, page: Page) -> None:
    first = finished.report.read_bytes()
    assert write_report(finished).read_bytes() == first


@pytest.mark.parametrize(
    ("sittings", "told"), [(1, "wall time: 3:00;"), (2, "wall time: 3:00 in 2 sittings;")]
)
def test_the_wall_time_is_of_all_sittings(finished: RunDir, tmp_path: Path, sittings: int, told: str) -> None:
    run_dir = start(tmp_path)
    run_dir.write_summary({**(finished.read_summary() or {}), "sittings": sittings})
    assert told in page_of(run_dir).text


def test_a_run_stopped_before_anything(started: RunDir) -> None:
    page = page_of(started)
    assert "did not finish" in page.text
    assert "0 iterations are on record" in page.text
    assert "It ended with" not in page.text
    assert "No evaluation is on record." in page.text
    assert not page.all("img")


def test_a_run_that_failed_says_with_what(started: RunDir) -> None:
    with pytest.raises(OutputError), run_error.kept(started.path):
        raise OutputError("x\n  reason: <b>full</b>")
    assert "It ended with OutputError: x; reason: <b>full</b>" in page_of(started).text


def test_a_run_stopped_half_way_shows_what_there_is(started: RunDir) -> None:
    started.append_metrics({**metrics_line(1), "reward": math.nan})
    started.write_trajectories(evaluation_name("before", "faces_10", "greedy"), STAGES["before", "faces_10"])
    page = page_of(started)
    assert "1 iteration is on record" in page.text
    assert (
        "faces_10 (trained), greedy: success 10.0% [4, 23] (before); there is nothing to compare it with."
        in page.text
    )
    assert "Reward per episode" not in page.text  # its only value was not finite
    assert "deal 0: solved" in page.text


def test_episodes_that_were_not_played_to_an_end_are_told(started: RunDir, page: Page) -> None:
    lost = [episode(ending=ending) for ending in (Ending.CONTEXT_FULL, Ending.CONTEXT_FULL, Ending.ENV_ERROR)]
    started.write_trajectories(evaluation_name("before", "faces_10", "greedy"), lost)
    shown = page_of(started).text
    assert "2 outgrew the context" in shown
    assert "1 broken by the environment" in shown
    assert "timed out" not in shown
    assert "outgrew" not in page.text


def test_the_command_writes_the_page_of_a_stopped_run(
    started: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(started.path)]) == 0
    assert capsys.readouterr().out == f"{started.report}\n"
    assert "did not finish" in started.report.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "holds", [[], ["config.yaml"]], ids=["nothing", "a comparison of which no cell has ended"]
)
def test_the_command_refuses_what_is_no_run(
    holds: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in holds:
        (tmp_path / name).write_text("name: demo\n")
    assert main([str(tmp_path)]) == 1
    assert "it holds neither a run" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_broken_record_is_refused(started: RunDir) -> None:
    started.summary.write_text('{"eval"')
    with pytest.raises(OutputError, match=r"summary\.json"):
        write_report(started)


def test_trailing_mean_by_hand() -> None:
    assert figures.trailing_mean([1, 2, 3, 4, 5, 11]) == [1, 1.5, 2, 2.5, 3, 5]


def test_names_with_markup_stay_text_in_figures() -> None:
    image = figures.paired_bars(
        "A < B & $C$", {"before": {"<script>": 0.5, "$x": 0.25}, "after": {"$x": 1.0}}
    )
    page = Page(image.svg)
    assert not page.all("script")
    assert "$x" in page.text
    shown = Page(image.__html__()).all("img")[0]
    assert shown["alt"] == "A < B & $C$. before: <script> 50.0%, $x 25.0%; after: $x 100.0%."


@given(st.text(max_size=20))
@example("\x00\x0b\ud800\ufffe")
def test_any_text_makes_an_image_that_a_browser_can_read(text: str) -> None:
    """XML refuses control characters, lone surrogates and U+FFFE; a browser then shows nothing of the image."""
    svg = f"<svg xmlns='http://www.w3.org/2000/svg'><text>{escape(text)}</text></svg>"
    (shown,) = Page(Markup("{}").format(Image(svg, text))).all("img")
    root = ElementTree.fromstring(decoded(shown))
    assert len(root[0].text or "") == len(re.sub("\r\n", "\n", text))


def replays(page: Page) -> list[dict[str, str | None]]:
    """The pictures that an environment drew, not the page's figures."""
    return [image for image in page.all("img") if (image["alt"] or "").startswith("Picture of how")]


def walk(variant: str, number: int, answers: list[str] | None = None) -> Trajectory:
    """An evaluation's route, walked by the expert or with `answers`."""
    env = registry.make("navigation")
    seed = evaluation_env_seed(7, variant, number)
    _, info = env.reset(seed=seed, options={"variant": variant, "split": "eval"})
    said = answers or [answer for _, answer, _ in env.unwrapped.expert(False, random.Random(0))]
    stepped = [env.step(answer) for answer in said]
    turns = [
        turn(s[4]["outcome"], float(s[1]), answer=answer) for s, answer in zip(stepped, said, strict=True)
    ]
    success = stepped[-1][4]["success"]
    played = episode(*turns, success=success, index=number, variant=variant)
    return replace(played, env="navigation", instance=info["instance"])


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a navigation run that was stopped after its first evaluation."""
    config = "env: navigation\nenv_args: {}\neval: {seed: 7}\ntrain_variant: absolute\n"
    run_dir = RunDir.create(tmp_path_factory.mktemp("walked") / "run", "demo", 0, config)
    routes = [
        walk("absolute", 0),
        walk("absolute", 1, [HOSTILE, HOSTILE]),
        replace(walk("absolute", 2), seed=5),
    ]
    elsewhere = replace(routes[2], instance="grid:another:1-2")
    run_dir.write_trajectories(evaluation_name("before", "absolute", "sampled"), [*routes[:2], elsewhere])
    return page_of(run_dir)


def test_routes_are_drawn_as_they_were_walked(walked: Page) -> None:
    images = replays(walked)
    assert [image["alt"] for image in images] == [
        f"Picture of how {walk('absolute', number).instance} stood at the end, before; the answers below say the same"
        " in words."
        for number in (1, 0)  # failures first; the instance that the environment no longer deals has none
    ]
    stood, arrived = (ElementTree.fromstring(decoded(image)) for image in images)
    assert len(points_of(stood, "walked")) == 1  # nothing that was answered led anywhere
    assert points_of(arrived, "walked")[-1] == points_of(arrived, "way")[-1]
    assert_inert(walked, "default-src 'none'")
    assert_told(walked)


def points_of(root: ElementTree.Element, kind: str) -> list[str]:
    lines = root.iter("{http://www.w3.org/2000/svg}polyline")
    return next(line.attrib["points"].split() for line in lines if line.get("class") == kind)


def test_right_steps_stand_beside_success(walked: Page, page: Page) -> None:
    right = sum(len(walk("absolute", number).turns) for number in (0, 2))
    assert f"right steps {right / (right + 2):.1%}" in walked.text
    assert "right steps" not in page.text


def test_an_environment_that_cannot_be_had_leaves_a_report_without_pictures(started: RunDir) -> None:
    config = "env: no_such_module:Env\nenv_args: {}\neval: {seed: 7}\ntrain_variant: faces_10\n"
    started.config.write_text(config)
    started.write_trajectories(evaluation_name("before", "faces_10", "greedy"), STAGES["before", "faces_10"])
    page = page_of(started, own_code=True)
    assert "could not draw pictures: UnknownEnvironment: no_such_module:Env" in page.text
    assert not replays(page)


SPIED = """
import pathlib, time
import gymnasium
from rlpost.envs.base import PlainVariant
from rlpost.envs.texts import AnyText

pathlib.Path(__file__).with_name("imported").touch()

class Hanging(gymnasium.Env):
    observation_space = action_space = AnyText(100)
    variants = [PlainVariant("faces_10", False, "hangs")]

    def reset(self, *, seed=None, options=None):
        time.sleep(60)

    def picture(self):
        return None
"""


@pytest.fixture
def spied(started: RunDir, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """The record of a run on a user's environment, which leaves a file when it is imported, and hangs when reset."""
    folder = started.path.parent
    (folder / "spied_on.py").write_text(SPIED)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "spied_on", raising=False)
    config = "env: spied_on:Hanging\nenv_args: {}\neval: {seed: 7}\ntrain_variant: faces_10\n"
    started.config.write_text(config + "rollout: {env_timeout_s: 0.3}\n")
    started.write_trajectories(evaluation_name("before", "faces_10", "greedy"), STAGES["before", "faces_10"])
    return started


def test_a_report_imports_no_code_that_a_record_names_unless_told_to(spied: RunDir) -> None:
    assert main([str(spied.path)]) == 0
    page = Page(spied.report.read_text(encoding="utf-8"))
    assert not (spied.path.parent / "imported").exists()
    assert "they may need spied_on:Hanging, and a report imports no code" in page.text
    assert main([str(spied.path), "--own-code"]) == 0
    assert (spied.path.parent / "imported").exists()


def test_an_environment_that_hangs_leaves_a_report_without_pictures(spied: RunDir) -> None:
    began = time.monotonic()
    page = page_of(spied, own_code=True)
    assert time.monotonic() - began < 30
    assert (
        "spied_on:Hanging (drawing an episode) gave no answer within rollout.env_timeout_s=0.3" in page.text
    )
    assert not replays(page)


def test_environments_without_pictures_are_asked_for_none() -> None:
    assert replay.picture(registry.make("generalpoints"), STAGES["after", "faces_10"][0], 1) is None


def test_the_page_counts_iterations_as_the_console_does(started: RunDir) -> None:
    """The record's first iteration is 0, a person's 1."""
    for i in range(3):
        started.append_metrics({"iteration": i, "success": 0.1 * i})
    (curve,) = page_of(started).all("img")
    assert "success: from 0.0% at 1 to 20.0% at 3" in (curve["alt"] or "")


def test_a_graded_run_leads_with_the_mean_reward(started: RunDir) -> None:
    started.write_trajectories(
        evaluation_name("before", "faces_10", "sampled"), [episode(turn("PARTIAL", 0.3))]
    )
    shown = page_of(started).text
    assert "faces_10 (trained), sampled: mean reward 0.300 [0.300, 0.300] (before)" in shown
    assert shown.index("Mean reward of an episode") > shown.index("solved 0.0% [0, 79]")


def test_samples_and_difficulties_have_tables_of_their_own(started: RunDir, page: Page) -> None:
    """Eight instances, twice each; four are solved at the first try alone, by an answer that the second lacks."""
    samples = [
        replace(
            each,
            episode=2 * each.episode + i,
            success=each.success and i == 0,
            difficulty=f"legs: {each.group % 2 + 1}",
            final_answer=str(i),
        )
        for each in deals({1, 2, 3, 4}, "faces_10", n=8)
        for i in range(2)
    ]
    started.write_evaluation("before", "faces_10", "sampled", samples)
    told = page_of(started).text
    assert "pass@250.0% [16, 84]" in told  # two cells
    assert "majority@225.0% [3, 65]" in told
    assert "legs: 125.0% [5, 70]of 8 episodes, 4 instances" in told
    assert "Several samples of each instance" not in page.text
    assert "Success by difficulty" not in page.text


def test_the_page_shows_what_the_update_did_to_the_weights(started: RunDir) -> None:
    """Two layers of two module types; nothing was searched for intruders in layer 1."""
    modules = {
        f"model.layers.{layer}.{kind}": ModuleSpectrum(
            0.1 * (layer + 1), 2.0, 0.1, 3.0, 1.5, None if layer else 2, 0.25
        )
        for layer in (0, 1)
        for kind in ("q_proj", "up_proj")
    }
    spectrum.write(Spectrum(4, 10, 0.5, "bfloat16", modules), started.path)
    page = page_of(started)
    assert_told(page)
    assert "The update's norm is 7.91% of that of the 4 weights it changes." in page.text
    assert "4 among the 10 leading singular vectors of each of 2 weights" in page.text
    assert "Rounding to bfloat16 loses 25.00% of it." in page.text
    told = " ".join(image["alt"] or "" for image in page.all("img"))
    assert "q_proj: from 5.00% in layer 0 to 10.00% in layer 1, highest 10.00%." in told
    assert "Intruder dimensions, by layer. q_proj: from 2 in layer 0 to 2 in layer 0" in told


def test_a_run_without_a_spectrum_says_nothing_of_it(page: Page) -> None:
    assert "What the update did" not in page.text
