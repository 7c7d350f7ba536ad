"""Shares, intervals and the accounting of time, against counts by hand and another library."""

from __future__ import annotations

import ast
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from rlpost.record.metrics import Clock, evaluation, rollout_metrics, step_accuracy, wilson
from rlpost.record.summary import held_out_losses, held_out_told
from rlpost.types import Ending, Finish
from tests.unit.episodes import episode, turn

ROOT = Path(__file__).resolve().parents[2]

# Four episodes with six answers, counted by hand in the tests below.
BATCH = [
    episode(turn("CORRECT", 5.0, tokens=3), success=True),
    episode(turn("SYNTAX", -2.0, tokens=1), turn("CORRECT", 5.0, tokens=4), success=True, index=1),
    episode(
        turn("SYNTAX", -2.0, tokens=6, finish=Finish.LENGTH),
        turn("WRONG_VALUE", -1.0, tokens=2),
        turn("WRONG_VALUE", -1.0, tokens=8, finish=Finish.LENGTH),
        ending=Ending.TRUNCATED,
        index=2,
    ),
    episode(ending=Ending.ENV_ERROR, error="ValueError: no", index=3),
]


def test_rollout_metrics_by_hand() -> None:
    assert rollout_metrics(BATCH) == pytest.approx(
        {
            "episodes": 4,
            "success": 2 / 4,
            "reward": (5 + 3 - 4 + 0) / 4,
            "partly_right": 0,
            "turns": 6 / 4,
            "tokens/prompt": 6 * 3,  # each turn's context has three tokens
            "tokens/sampled": 24,
            "answer_tokens": 24 / 6,
            "cut_share": 2 / 6,
            "outcome/CORRECT": 2 / 6,
            "outcome/SYNTAX": 2 / 6,
            "outcome/WRONG_VALUE": 2 / 6,
            "ending/terminated": 2 / 4,
            "ending/truncated": 1 / 4,
            "ending/context_full": 0,
            "ending/env_error": 1 / 4,
            "ending/env_timeout": 0,
            "broken": 1,
            "unfit": 0,
        }
    )


def test_evaluation_by_hand() -> None:
    found = evaluation(BATCH)
    low, high = found.pop("low"), found.pop("high")
    assert found == {
        "n": 4,
        "instances": 4,
        "success": 0.5,
        "success_by_turn": [0.25, 0.5, 0.5],
        "step_accuracy": None,
        "reward": 1.0,
        "reward_low": pytest.approx(1.0 - 1.96 * 3.9157800414902435 / 2),  # deviation of 5, 3, -4, 0
        "reward_high": pytest.approx(1.0 + 1.96 * 3.9157800414902435 / 2),
        "graded": False,
        "answer_tokens": 4.0,
        "cut_share": pytest.approx(1 / 3),
        "outcomes": {"CORRECT": 2, "SYNTAX": 2, "WRONG_VALUE": 2},
        "failures": {"WRONG_VALUE": 1},
        "context_full": 0,
        "env_errors": 1,
        "env_timeouts": 0,
        "unfit": 0,
        "first_failure": "ValueError: no (generalpoints, variant faces_10, instance deal 3, episode 3)",
    }
    assert (low, high) == wilson(2, 4)


def test_an_instance_that_is_played_again_is_no_further_trial() -> None:
    """Three questions, asked 256 times: the interval is that of three trials, and not [28, 39]."""
    played = [episode(turn(), success=i % 3 == 0, index=i % 3) for i in range(255)]
    found = evaluation(played)
    assert (found["n"], found["instances"], found["success"]) == (255, 3, 1 / 3)
    assert (found["low"], found["high"]) == wilson(1, 3) == pytest.approx((0.06, 0.79), abs=0.01)


def test_episodes_that_broke_before_they_had_a_name_are_trials_each() -> None:
    broken = [replace(episode(ending=Ending.ENV_ERROR, error="no", index=i), instance="") for i in range(5)]
    assert evaluation(broken)["instances"] == 5


def test_a_hung_environment_is_counted_apart() -> None:
    found = evaluation([*BATCH, episode(ending=Ending.ENV_TIMEOUT, error="slow")])
    assert (found["n"], found["env_errors"], found["env_timeouts"]) == (5, 1, 1)


def test_an_episode_that_outgrew_the_context_is_counted_apart() -> None:
    found = evaluation([*BATCH, episode(ending=Ending.CONTEXT_FULL)])
    assert (found["n"], found["context_full"], found["env_errors"]) == (5, 1, 1)


def test_episodes_without_a_turn_are_measured() -> None:
    broken = [episode(ending=Ending.ENV_ERROR, error="no")]
    assert rollout_metrics(broken)["answer_tokens"] == 0.0
    assert evaluation(broken)["success_by_turn"] == []


def test_step_accuracy_counts_right_answers_of_episodes_that_go_on() -> None:
    right, wrong = turn("CORRECT", 1.0), turn("WRONG_ACTION", -1.0)
    arrived = episode(wrong, right, right, success=True)
    assert step_accuracy([arrived, episode(wrong, wrong, index=1)]) == 2 / 5
    assert step_accuracy([episode(right, turn("ASTRAY", 0.0))]) == 1 / 2
    assert step_accuracy([episode(wrong, wrong)]) == 0.0  # a rule misread at the first step of every route
    assert step_accuracy([episode(wrong, right, success=True)]) is None  # attempts at one step
    assert step_accuracy([episode(ending=Ending.ENV_ERROR)]) is None


@pytest.mark.parametrize("function", [rollout_metrics, evaluation])
def test_no_episodes_are_refused(function) -> None:
    with pytest.raises(ValueError, match="no episodes"):
        function([])


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 256), (3, 7), (57, 256), (256, 256), (110, 200)]
)
def test_wilson_against_its_formula_and_scipy(successes: int, n: int) -> None:
    z, p = 1.959963984540054, successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-12)
    other = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((other.low, other.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        wilson(successes, n)


class Hands:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.ns = 1_000

    def __call__(self) -> int:
        return self.ns

    def pass_(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def test_phases_and_the_rest_make_the_lap() -> None:
    hands = Hands()
    clock = Clock(hands)
    hands.pass_(1)
    for _ in range(2):
        with clock.phase("rollout"):
            hands.pass_(3)
    with clock.phase("update"):
        hands.pass_(10)
    clock.split("update", {"logprobs": 2.5, "update": 7.0})
    expected = {"rollout": 6, "logprobs": 2.5, "update": 7, "other": 1.5, "total": 17}
    assert clock.lap() == pytest.approx({f"seconds/{k}": v for k, v in expected.items()})


def test_laps_leave_no_gap() -> None:
    hands, rng = Hands(), random.Random(0)
    began, clock, laps = hands.ns, Clock(hands), []
    for _ in range(50):
        for name in rng.choices(["a", "b", "c"], k=3):
            hands.pass_(rng.random())
            with clock.phase(name):
                hands.pass_(rng.random())
        laps.append(clock.lap())
    assert sum(lap["seconds/total"] for lap in laps) == pytest.approx((hands.ns - began) * 1e-9)
    for lap in laps:
        parts = [value for key, value in lap.items() if key != "seconds/total"]
        assert math.fsum(parts) == pytest.approx(lap["seconds/total"], rel=1e-12)
        assert min(parts) > 0


def test_a_phase_that_raises_is_booked_and_over() -> None:
    hands = Hands()
    clock = Clock(hands)

    def fail() -> None:
        with clock.phase("rollout"):
            hands.pass_(2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.lap()["seconds/rollout"] == pytest.approx(2)


def test_overlap_is_refused() -> None:
    clock = Clock()
    with clock.phase("rollout"):
        with (
            pytest.raises(RuntimeError, match="'update' cannot begin while phase 'rollout' runs"),
            clock.phase("update"),
        ):
            pass
        with pytest.raises(RuntimeError, match="lap cannot end"):
            clock.lap()
    with pytest.raises(ValueError, match="other"), clock.phase("other"):
        pass


def test_split_scales_a_hair_and_refuses_more() -> None:
    hands = Hands()
    clock = Clock(hands)
    with clock.phase("update"):
        hands.pass_(10)
    clock.split("update", {"logprobs": 5.0, "update": 5.05})
    lap = clock.lap()
    assert lap["seconds/logprobs"] + lap["seconds/update"] == pytest.approx(10)
    assert lap["seconds/other"] >= 0
    with clock.phase("update"):
        hands.pass_(10)
    with pytest.raises(ValueError, match="no parts"):
        clock.split("update", {"logprobs": 5.0, "update": 5.5})
    with pytest.raises(ValueError, match="no parts"):
        clock.split("never", {"logprobs": 1.0})


def documented() -> set[str]:
    """The keys that docs/metrics.md defines: the first cell of its tables' rows, in backticks."""
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {key for cell in rows for key in cell.split("`")[1::2]}


def keys_written_in(source: Path) -> set[str]:
    """String keys of dict displays and of assignments such as metrics["x"] = ..."""
    found: set[object] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
        if isinstance(node, ast.Assign):
            slots = [t.slice for t in node.targets if isinstance(t, ast.Subscript)]
            found |= {slot.value for slot in slots if isinstance(slot, ast.Constant)}
    return {key for key in found if isinstance(key, str)}


def general(key: str) -> str:
    prefix, slash, _ = key.partition("/")
    return {"outcome": "outcome/<NAME>", "ending": "ending/<NAME>"}.get(prefix, key) if slash else key


def phases_of(source: Path) -> set[str]:
    """The names in `clock.phase("...")`, but those that `clock.split` books as something else."""
    calls = [
        node for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
    ]
    named: dict[str, set[str]] = {"phase": set(), "split": set()}
    for call in calls:
        if isinstance(call.func, ast.Attribute) and call.func.attr in named:
            assert isinstance(call.args[0], ast.Constant)
            if isinstance(call.args[0].value, str):
                named[call.func.attr].add(call.args[0].value)
    return {f"seconds/{name}" for name in named["phase"] - named["split"]}


def test_every_metric_is_documented() -> None:
    produced = {general(key) for key in (*rollout_metrics(BATCH), *evaluation(BATCH), *Clock().lap())}
    for source in (
        "learner/update.py",
        "learner/steps.py",
        "algorithms/objective.py",
        "algorithms/credit.py",
        "algorithms/selection.py",
        "algorithms/preferences.py",
        "algorithms/losses.py",
        "rollout/dynamic_sampling.py",
    ):
        produced |= keys_written_in(ROOT / "rlpost" / source)
    produced |= {key for key in keys_written_in(ROOT / "rlpost/rollout/pool.py") if key.startswith("swap/")}
    for source in ("rl.py", "sft.py", "evaluate.py"):
        produced |= phases_of(ROOT / "rlpost/tasks" / source)
    assert {"seconds/rollout", "swap/canary_gap", "approx_kl", "explained_variance"} <= produced
    assert sorted(produced - documented()) == []


def test_graded_is_what_pays_for_answers_that_did_not_solve() -> None:
    """Not a step on the way, nor one after which the context was full; not a penalty."""
    partly = episode(turn("PARTIAL", 0.3))
    step = episode(turn("RIGHT", 1.0), turn("WRONG", -1.0), ending=Ending.TRUNCATED)
    full = episode(turn("RIGHT", 1.0), ending=Ending.CONTEXT_FULL)
    assert evaluation([partly, *BATCH])["graded"]
    assert rollout_metrics([partly, *BATCH])["partly_right"] == 1 / 5
    assert not evaluation([step, full, *BATCH])["graded"]
    assert rollout_metrics([step, full, *BATCH])["partly_right"] == 0
    assert evaluation([partly])["reward_low"] == evaluation([partly])["reward_high"] == 0.3


def test_parts_of_rewards_are_means_over_the_answers_that_they_apply_to() -> None:
    batch = [
        episode(turn(parts=(("right", 1.0), ("short", -0.5)))),
        episode(turn(parts=(("right", 0.0),)), turn(parts=(("right", 0.5),))),
        episode(turn()),
    ]
    found = rollout_metrics(batch)
    assert {key: value for key, value in found.items() if key.startswith(("reward/", "applies/"))} == {
        "reward/right": 0.5,
        "reward/short": -0.5,
        "applies/right": 0.75,
        "applies/short": 0.25,
    }
    assert evaluation(batch)["parts"]["reward/right"] == 0.5
    assert "parts" not in evaluation(BATCH)


def test_held_out_losses_by_stage_and_variant() -> None:
    lines = [
        {"stage": "start", "seconds/total": 1.0},
        {"stage": "before", "held_out/a/b/loss": 2.0, "held_out/a/b/tokens": 9.0},
        {"stage": "sft", "step": 0, "loss": 1.0},
        {"stage": "after", "held_out/a/b/loss": 1.25, "held_out/other/loss": 3.0},
    ]
    losses = held_out_losses(lines)
    assert losses == {"before": {"a/b": 2.0}, "after": {"a/b": 1.25, "other": 3.0}}
    assert held_out_told({"held_out_loss": losses}) == {
        "a/b": "2.000 before, 1.250 after",
        "other": "3.000 after",
    }
    assert held_out_told({}) == {}
