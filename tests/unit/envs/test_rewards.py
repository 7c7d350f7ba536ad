"""What scoring functions are given, what they may return, and how several are added up."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlpost.envs import registry
from rlpost.envs.errors import Refused

FUNCTIONS = """
import asyncio

seen = []

def right(answer, row):
    return answer == row["answer"]

def short(answer, longest=10):
    return -len(answer) / longest

def everything(answer, prompt, messages, row, level):
    seen.append((answer, prompt, messages, row, level))
    return 1

def all_of_it(**others):
    seen.append(others)
    return 1

def sometimes(answer):
    return None if answer == "5" else 0.5

def never(answer):
    return None

def parts(answer):
    return {"format": 0.25, "value": answer == "3", "style": None}, "GRADED"

def no_part():
    return {"format": None}

async def waits(answer):
    await asyncio.sleep(0.01)
    return 0.5, "WAITED"

loops = []

async def same_loop(answer):
    loops.append(asyncio.get_running_loop())
    return 0

def raises(answer):
    raise LookupError("no row")

async def fails(answer):
    await asyncio.sleep(0)
    raise LookupError("no judge")

class Judge:
    async def __call__(self, row):
        return row["level"]

judge = Judge()

def rare(answer, note):
    return 1
"""


@pytest.fixture(autouse=True)
def _functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rewards", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> str:
    rows = [{"prompt": [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{n} + 1"}],
             "answer": str(n + 1), "level": n} for n in range(30)]  # fmt: skip
    rows[0]["note"] = "x"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "rows.jsonl")


def said(path: str, answer: str, *score: str, **args: Any) -> tuple[float, dict[str, Any]]:
    """Reward and info of an answer to the row `2 + 1`, whose right answer is 3."""
    env = registry.make("dataset", path=path, score=list(score) if len(score) > 1 else score[0], **args)
    for seed in range(10_000):
        env.reset(seed=seed, options={"split": "all"})
        if env.unwrapped.question.data["level"] == 2:  # type: ignore[attr-defined]
            break
    _, reward, *_, info = env.step(answer)
    env.close()
    return reward, info


def test_several_are_weighted_and_named(path: str) -> None:
    reward, info = said(path, "3", "rewards:right", "rewards:short", weights=[1, 0.2])
    assert reward == pytest.approx(1 - 0.2 * 0.1)
    assert info == {"outcome": "CORRECT", "success": True, "parts": {"right": 1.0, "short": -0.1}}
    reward, info = said(path, "33", "rewards:right", "rewards:short")
    assert reward == pytest.approx(-0.2)
    assert (info["outcome"], info["success"]) == ("WRONG", False)


def test_the_first_that_applies_decides_success_and_outcome(path: str) -> None:
    _, info = said(path, "5", "rewards:sometimes", "rewards:waits", weights=[1, 10], success_at=0.5)
    assert (info["outcome"], info["success"], info["parts"]) == ("WAITED", True, {"waits": 0.5})
    reward, info = said(path, "4", "rewards:sometimes", "rewards:waits", weights=[1, 10], success_at=0.6)
    assert (reward, info["outcome"], info["success"]) == (5.5, "PARTIAL", False)
    assert info["parts"] == {"sometimes": 0.5, "waits": 0.5}


def test_a_dict_is_the_sum_of_its_parts(path: str) -> None:
    reward, info = said(path, "3", "rewards:parts")
    assert (reward, info) == (
        1.25,
        {"outcome": "GRADED", "success": True, "parts": {"format": 0.25, "value": 1.0}},
    )
    _, info = said(path, "3", "rewards:parts", "rewards:short")
    assert info["parts"] == {"parts": 1.25, "parts.format": 0.25, "parts.value": 1.0, "short": -0.1}
    assert "parts" not in said(path, "3", "rewards:right")[1]


@pytest.mark.parametrize("score", [("rewards:never",), ("rewards:never", "rewards:no_part")])
def test_an_answer_that_none_applies_to_is_a_failure(path: str, score: tuple[str, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"score=rewards:never.*: applies to no part of this answer: every function"
    ):
        said(path, "3", *score)


def test_a_function_is_given_what_its_parameters_name(path: str) -> None:
    said(path, "3", "rewards:everything")
    [(answer, prompt, messages, row, level)] = sys.modules["rewards"].seen
    assert (answer, prompt, level, row["answer"]) == ("3", "2 + 1", 2, "3")
    assert messages == [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 1"}]
    assert type(row) is dict
    sys.modules["rewards"].seen.clear()
    said(path, "4", "rewards:all_of_it")
    [others] = sys.modules["rewards"].seen
    assert others["answer"] == "4", "the model's, not the row's"
    assert others["prompt"] == "2 + 1"
    assert others.keys() == {"answer", "prompt", "messages", "row", "level"}


def test_a_field_that_a_row_lacks_is_told(path: str) -> None:
    with pytest.raises(KeyError, match="score=rewards:rare asks for 'note', which this row lacks"):
        said(path, "3", "rewards:rare")


def test_async_functions_are_awaited_together_in_one_loop(path: str) -> None:
    assert said(path, "3", "rewards:waits")[0] == 0.5
    assert said(path, "3", "rewards:judge")[0] == 2.0
    env: Any = registry.make("dataset", path=path, score="rewards:same_loop")
    for seed in range(3):
        env.reset(seed=seed)
        env.step("x")
    loops = sys.modules["rewards"].loops
    assert len(loops) == 3
    assert len(set(map(id, loops))) == 1
    env.close()
    assert loops[0].is_closed()
    with pytest.raises(LookupError, match="no judge"):
        said(path, "3", "rewards:right", "rewards:fails")


@pytest.mark.filterwarnings("error")
def test_what_nobody_will_await_is_closed(path: str) -> None:
    with pytest.raises(LookupError, match="no row"):
        said(path, "3", "rewards:waits", "rewards:raises")
    gc.collect()  # a coroutine that was never awaited warns when it is collected


@pytest.mark.parametrize("tests", ["assert (", ["assert x == 7", "def f(:"], "assert x == 7\n  y"])
def test_tests_that_are_no_python_are_refused_by_row(tmp_path: Path, tests: object) -> None:
    mixed = tmp_path / "broken.jsonl"
    mixed.write_text("".join(json.dumps({"prompt": f"c{n}", "tests": tests}) + "\n" for n in range(9)))
    with pytest.raises(
        Refused, match=r"broken.jsonl:1: its field 'tests' is .* as Python it is wrong in line \d"
    ):
        said(str(mixed), "it is 7", "code")


def test_functions_of_one_name_are_logged_by_their_modules(path: str, tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text("def right(answer): return 0\n")
    _, info = said(path, "3", "rewards:right", "others:right")
    assert info["parts"] == {"rewards.right": 1.0, "others.right": 0.0}


def test_ready_scorers_join_and_leave_out_rows_without_their_field(path: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "answer": "7", "level": 2} for n in range(9)]
    rows += [{"prompt": f"c{n}", "tests": "assert x == 7", "level": 3} for n in range(9)]  # type: ignore[dict-item]
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward, info = said(str(mixed), "it is 7", "number", "code")
    assert (reward, info["parts"], info["outcome"]) == (1.0, {"number": 1.0}, "CORRECT")
    with pytest.raises(Refused, match=r"9 rows cannot be used: .*its field 'answer' is missing"):
        registry.make("dataset", path=str(mixed), score="number")
    with pytest.raises(
        Refused, match=r"9 rows cannot be used: .*its field 'tests' is missing .* but must be tests"
    ):
        registry.make("dataset", path=str(mixed), score="code")
