"""Data sets: rows of every kind of file, splits and variants, scorers, and refusals that name file and line."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest

from rlpost.envs import check, registry
from rlpost.envs.base import Expert
from rlpost.envs.dataset import files, table
from rlpost.envs.dataset.rewards import returned
from rlpost.envs.errors import Refused
from rlpost.envs.splits import Split, split_of

SCORERS = """
import copy
import functools
import json

import numpy

def right(answer, row):
    return answer == row["answer"]

def graded(answer, row):
    return (0.5, "NEARLY") if answer else numpy.float32(-1)

def nonsense(answer, row):
    return {"": None, "nan": float("nan"), "text": "1", "pair": (1.0, 2), "part": {"a": "x"}}[answer]

def asks(answer, colour):
    return True

def places(answer, row, /):
    return True

def spoils(answer, row):
    whole = copy.deepcopy(row) == json.loads(json.dumps(row)) == row and isinstance(row, dict)
    right = answer == row.pop("expert") and row["tests"][0]["in"].pop() >= 0
    return numpy.bool_(whole and right)

number = 3

class Judge:
    def __call__(self, answer, row):
        return answer == row["answer"]

judge = Judge()
either_way = functools.partial(lambda strict, answer, row: answer == row["answer"], False)
from os import system
import_of_another = functools.partial(system)
"""

ROWS = [{"prompt": f"{n} + 1 =", "answer": str(n + 1), "kind": "odd" if n % 2 else "even"} for n in range(60)]


@pytest.fixture(autouse=True)
def _scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorers.py").write_text(SCORERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)


def written(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return written(tmp_path / "rows.jsonl", ROWS)


def made(path: str, **args: Any) -> Any:
    return registry.make("dataset", **{"path": path, "score": "my_scorers:right", **args})


def prompts(env: Any, variant: str, split: str) -> set[str]:
    options = {"variant": variant, "split": split}
    return {env.reset(seed=seed, options=options)[0] for seed in range(400)}


def test_a_row_is_asked_once_and_scored(path: str) -> None:
    env = made(path)
    observation, _ = env.reset(seed=3)
    right = str(int(observation.split()[0]) + 1)
    assert env.step(right) == ("Correct.", 1.0, True, False, {"outcome": "CORRECT", "success": True})
    env.reset(seed=3)
    assert env.step("no") == ("Not correct.", 0.0, True, False, {"outcome": "WRONG", "success": False})


def test_splits_are_every_row_by_hash(path: str) -> None:
    env = made(path)
    train, evaluation = prompts(env, "default", "train"), prompts(env, "default", "eval")
    assert train | evaluation == {row["prompt"] for row in ROWS} == prompts(env, "default", "all")
    assert not train & evaluation
    assert 5 < len(evaluation) < 30
    _, info = env.reset(seed=0, options={"split": "eval"})
    assert split_of(info["instance"]) is Split.EVAL
    assert prompts(made(path, eval_share=0), "default", "train") == train | evaluation
    with pytest.raises(Refused, match=r"has no rows of split 'eval'; change eval_share"):
        made(path, eval_share=0).reset(options={"split": "eval"})


def test_variants_by_row(path: str) -> None:
    args = {"path": path, "score": "my_scorers:right", "variant": "kind", "held_out": ["even"]}
    listed = registry.variants("dataset", **args)
    assert [(each.name, each.held_out) for each in listed] == [("odd", False), ("even", True)]
    assert listed[1].summary == f"0 rows to train on, 30 to evaluate on, of {path}"
    env = registry.make("dataset", **args)
    assert len(prompts(env, "even", "eval")) == 30
    assert prompts(env, "odd", "train") < {row["prompt"] for row in ROWS if row["kind"] == "odd"}
    with pytest.raises(Refused, match="has no rows of split 'train'"):
        env.reset(options={"variant": "even", "split": "train"})


def test_a_held_out_file(path: str, tmp_path: Path) -> None:
    other = written(tmp_path / "other.jsonl", [{"prompt": "9 * 9 =", "answer": "81"}])
    args = {"path": path, "score": "my_scorers:right", "held_out_path": other, "eval_share": 0}
    assert [each.name for each in registry.variants("dataset", **args)] == ["default", "held_out"]
    assert prompts(registry.make("dataset", **args), "held_out", "eval") == {"9 * 9 ="}
    written(Path(other), [ROWS[7]])
    with pytest.raises(
        Refused, match=r"1 prompts are both trained on and held out: .*rows.jsonl:8 and .*other"
    ):
        registry.make("dataset", **{**args, "success_at": 0.5})


def test_an_expert_where_rows_have_one(path: str) -> None:
    env = made(path, expert="answer", instruction="Say only the number.")
    observation, _ = env.reset(seed=1)
    assert observation.endswith("=\nSay only the number.")
    assert isinstance(env, Expert)
    [(shown, answer, learn)] = env.expert(True, random.Random(0))
    assert (shown, learn) == (observation, True)
    assert env.step(answer)[4]["success"]
    assert not isinstance(made(path), Expert)


def test_scores_of_every_kind(path: str) -> None:
    env = made(path, score="my_scorers:graded", success_at=0.5)
    env.reset(seed=0)
    assert env.step("x")[1:] == (0.5, True, False, {"outcome": "NEARLY", "success": True})
    env.reset(seed=0)
    assert env.step("")[1:] == (-1.0, True, False, {"outcome": "WRONG", "success": False})


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("part", TypeError), ("text", TypeError), ("pair", TypeError), ("nan", ValueError)],
)
def test_what_is_no_score_raises(path: str, answer: str, kind: type[Exception]) -> None:
    env = made(path, score="my_scorers:nonsense")
    env.reset(seed=0)
    with pytest.raises(kind, match=r"score=my_scorers:nonsense returned .*must be"):
        env.step(answer)


class OneElement:
    """What tensors, arrays and scalars of other libraries have in common."""

    def __init__(self, *values: object) -> None:
        self.values = values

    def item(self) -> object:
        (value,) = self.values
        return value


@pytest.mark.parametrize(
    ("result", "reward"),
    [
        (numpy.isclose(1.0, 1.0), 1.0),
        (numpy.bool_(False), 0.0),
        (numpy.float32(0.5), 0.5),
        (numpy.int64(1), 1.0),
        (numpy.array(0.5), 0.5),
        (numpy.array([True]), 1.0),
        (OneElement(0.25), 0.25),
        (OneElement(numpy.float16(0.25)), 0.25),
        (Fraction(1, 2), 0.5),
        (Decimal("0.5"), 0.5),
        ((numpy.bool_(True), "CLOSE"), 1.0),
    ],
)
def test_a_score_is_whatever_holds_one_number(result: object, reward: float) -> None:
    found = returned(result, "m:f")
    assert (found.reward, found.parts) == (reward, {})
    assert type(found.reward) is float
    if isinstance(result, tuple):
        assert found.outcome == "CLOSE"


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (numpy.array([1, 0]), TypeError),
        (OneElement(), TypeError),
        (OneElement("1"), TypeError),
        (numpy.str_("1"), TypeError),
        ("1", TypeError),
        ({"item": "1"}, TypeError),
        ({"item": {"inner": 1}}, TypeError),
        ({"item": float("nan")}, ValueError),
        ((1.0,), TypeError),
        ((1.0, ""), TypeError),
        (1j, TypeError),
        (numpy.float32("nan"), ValueError),
        (OneElement(float("inf")), ValueError),
        (Decimal("sNaN"), ValueError),
        (10**400, ValueError),
        (Fraction(-(10**400)), ValueError),
        (1.1e15, ValueError),
        ({"a": -1e308}, ValueError),
    ],
)
def test_what_holds_no_one_number_is_no_score(result: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"score=m:f returned .*: must be"):
        returned(result, "score=m:f")


def test_a_scorer_gets_a_dict_of_its_own(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "tests": [{"in": [n]}], "expert": "yes"} for n in range(9)]
    env = made(written(tmp_path / "m.jsonl", rows), score="my_scorers:spoils", expert="expert")
    for _ in range(3):
        env.reset(seed=0)
        assert env.expert(False, random.Random(0))[0][1] == "yes"
        assert env.step("yes")[1] == 1.0, "what the scorer did to a row stayed in the data set"


@pytest.mark.parametrize(
    ("score", "marker", "said", "outcome"),
    [
        ("exact", None, " 1,234 ", "CORRECT"),
        ("exact", None, "1234", "WRONG"),
        ("exact", "####", "thus #### 0 #### 1,234\n", "CORRECT"),
        ("exact", "####", "1,234", "NO_ANSWER"),
        ("number", None, "12 and so 1234.0", "CORRECT"),
        ("number", None, "1234 and so 12", "WRONG"),
        ("number", None, "1235", "WRONG"),
        ("number", None, "2468/2", "CORRECT"),
        ("number", None, "none", "NO_ANSWER"),
        ("number", None, "9" * 100_000, "NO_ANSWER"),
        ("number", None, "1/0", "NO_ANSWER"),
        ("number", "####", "12 #### 1234 eggs, not 5", "CORRECT"),
    ],
)
def test_built_in_scorers(tmp_path: Path, score: str, marker: str | None, said: str, outcome: str) -> None:
    rows = [{"prompt": f"p{n}", "answer": "12 and 3: #### 1,234" if marker else "1,234"} for n in range(9)]
    env = made(written(tmp_path / "m.jsonl", rows), score=score, marker=marker)
    env.reset(seed=0)
    assert env.step(said)[4]["outcome"] == outcome


@pytest.mark.parametrize(
    ("given", "said", "right"),
    [
        (38.0, "38", True),
        (38, "38.0", True),
        (38.0, "3.8e1", True),
        (38.0, "-38", False),
        (38.0, "38 eggs", False),
        (1e-05, "0.00001", True),
        (1e-05, "-5", False),
        (0.1, "0.1", True),
        (True, "true", True),
        (True, "1", False),
        ("38.0", "38", False),
        ("1e3", "1000", False),
    ],
)
def test_exact_compares_numbers_as_numbers_and_texts_as_texts(
    tmp_path: Path, given: object, said: str, right: bool
) -> None:
    env = made(
        written(tmp_path / "m.jsonl", [{"prompt": f"p{n}", "answer": given} for n in range(9)]), score="exact"
    )
    env.reset(seed=0)
    assert env.step(said)[4]["success"] is right


@pytest.mark.parametrize("answer", [" ", "", None, [1], {"a": 1}, "1e999"])
@pytest.mark.parametrize("score", ["exact", "number"])
def test_what_is_no_answer_is_refused(tmp_path: Path, answer: object, score: str) -> None:
    (tmp_path / "m.jsonl").write_text(
        '{"prompt": "a", "answer": %s}\n' % (json.dumps(answer) if answer != "1e999" else answer)
    )
    with pytest.raises(Refused, match=r"m.jsonl:1: its field 'answer' is .*, but must be an answer"):
        made(str(tmp_path / "m.jsonl"), score=score)


def test_a_narrow_column_holds_what_was_written() -> None:
    row = {"a": float(numpy.float32(0.1)), "b": None, "c": float(numpy.float16(0.3)), "d": 0.1}
    narrow: dict[str, Any] = {"a": numpy.float32, "b": numpy.float32, "c": numpy.float16}
    assert row["a"] != 0.1
    assert files._as_written(row, narrow) == {"a": 0.1, "c": 0.3}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a", "answer": ', "rows.jsonl:2: is not JSON"),
        (
            '{"prompt": "a" "b"}',
            "rows.jsonl:2: is not JSON: Expecting ',' delimiter, at character 16 of the line",
        ),
        ('{"prompt": "a", "prompt": "b"}', "rows.jsonl:2: is not JSON: the name 'prompt' stands twice"),
        ('{"prompt": "a", "x": [{"y": 1, "y": 1}]}', "rows.jsonl:2: is not JSON: the name 'y' stands twice"),
        ("[1, 2]", "rows.jsonl:2: is no object but list"),
        ('{"prompt": NaN}', "rows.jsonl:2: is not JSON: NaN is no JSON"),
        ('{"question": "a"}', r"rows.jsonl:2: its field 'prompt' is missing \(there are question\)"),
        ('{"prompt": " "}', "rows.jsonl:2: its field 'prompt' is ' ', but must be a text"),
        ('{"prompt": 3}', "rows.jsonl:2: its field 'prompt' is 3, but must be a text"),
        (
            '{"prompt": "a", "answer": "b"}',
            "rows.jsonl:2: its field 'kind' is missing .*must name its variant",
        ),
        ('{"prompt": "a", "kind": "odd"}', "rows.jsonl:2: its field 'answer' is missing"),
        (
            '{"prompt": "a", "answer": "b", "kind": "odd"}',
            "rows.jsonl:2: its field 'answer' has no number: 'b'",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{line}\n\n{json.dumps(ROWS[1])}\n")
    with pytest.raises(Refused, match=told):
        made(str(tmp_path / "rows.jsonl"), score="number", variant="kind")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "1"}\n', encoding)
    with pytest.raises(
        Refused, match=r"rows.jsonl:1: begins with a byte order mark; save the file as UTF-8 without"
    ):
        made(str(tmp_path / "rows.jsonl"))


def test_a_file_without_rows_is_refused_as_empty(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n")
    with pytest.raises(Refused, match=r"rows.jsonl: has no rows; give at least one"):
        made(str(tmp_path / "rows.jsonl"))


def test_bad_rows_are_counted_and_bad_bytes_found(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"7 rows cannot be used: .*:1: .*:5: .* and 2 more; mend or remove"):
        made(written(tmp_path / "a.jsonl", [{}] * 7))
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(Refused, match=r"b.jsonl:1: is not JSON: .*utf-8"):
        made(str(tmp_path / "b.jsonl"))


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"path": "no.jsonl"}, r"no.jsonl: there is no such file or folder, seen from /.*; name a .jsonl file"),
        ({"path": None}, "path=None: is no text"),
        ({"paht": "x"}, "unknown argument paht; there are: path, score, weights, held_out_path"),
        ({"score": "right"}, "score='right': is neither exact, number, math, code nor a function"),
        ({"score": 3}, "score=3: names no scoring functions"),
        ({"score": []}, r"score=\[\]: names no scoring functions"),
        ({"score": ["exact", "exact"]}, "exact stands twice"),
        ({"score": ["exact", "number"], "weights": [1]}, "are 1, for 2 functions"),
        ({"weights": 1}, "weights=1: is no list"),
        ({"weights": [True]}, "weights=True: is no finite number"),
        ({"prompt": None, "messages": None}, "no field is left to ask"),
        ({"time_limit_s": 0}, "time_limit_s=0: out of range"),
        ({"score": "my_scorers:rigth"}, "my_scorers:rigth cannot be imported: AttributeError"),
        ({"score": "my_scorers:asks"}, "asks for 'colour', which is neither given nor a field.*define it as: def"),
        ({"score": "my_scorers:places"}, "its parameter answer cannot be given by name"),
        ({"score": "my_scorers:number"}, "cannot be called"),
        ({"held_out": "hard"}, "without variant= no row has a variant"),
        ({"held_out": ["hard"], "variant": "kind"}, r"held_out=\['hard'\]: no row is of that variant"),
        ({"held_out": ["odd", "even"], "variant": "kind"}, "has 60 rows, none of them to train on"),
        ({"held_out": 3}, "are no names"),
        ({"eval_share": 1}, "eval_share=1: out of range"),
        ({"success_at": "much"}, "is no finite number"),
        ({"marker": ""}, "it is empty"),
    ],
)  # fmt: skip
def test_arguments_are_refused_with_a_remedy(path: str, args: dict[str, Any], told: str) -> None:
    with pytest.raises(Refused, match=told) as caught:
        made(**{"path": path, **args})
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("score", "told"),
    [
        ("cProfile:run", "cProfile:run is of Python's standard library"),
        ("os:system", "os:system is of Python's standard library"),
        ("builtins:exec", "builtins:exec is of Python's standard library"),
        ("importlib.util:find_spec", "is of Python's standard library"),
        ("my_scorers:system", "is no scorer but of Python's module posix"),
        ("my_scorers:import_of_another", "is no scorer but of Python's module posix"),
        ("my_scorers:Judge", "is no scorer but a class"),
    ],
)
def test_what_is_no_scorer_is_refused_and_not_called(path: str, score: str, told: str) -> None:
    with pytest.raises(Refused, match=told) as caught:
        made(path, score=score)
    assert caught.value.remedy


@pytest.mark.parametrize("score", ["my_scorers:judge", "my_scorers:either_way"])
def test_any_callable_of_the_users_may_score(path: str, score: str) -> None:
    env = made(path, score=score)
    env.reset(seed=0)
    assert env.step("nothing")[1] == 0.0


def test_environments_that_are_made_at_the_same_time_read_once(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    original = table.read

    def read_slowly(path: str) -> Any:
        reads.append(path)
        time.sleep(0.05)
        return original(path)

    monkeypatch.setattr(table, "read", read_slowly)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: made(path), range(8)))
    assert reads == [path]


def test_a_module_of_the_standard_library_is_no_environment_and_not_imported() -> None:
    with pytest.raises(Refused, match="antigravity:fly is of Python's standard library"):
        registry.make("antigravity:fly")
    assert "antigravity" not in sys.modules


def test_what_is_needed_is_said(path: str) -> None:
    with pytest.raises(Refused, match=r"path= is missing; give env_args.path=FILE"):
        registry.make("dataset", score="exact")
    env = registry.make("dataset", path=path)
    env.reset(seed=0)
    with pytest.raises(Refused, match=r"no score= is given; env_args.score=my_module:score, or one of exact"):
        env.step("1")


def test_kinds_of_files(tmp_path: Path) -> None:
    for name, told in (("rows.csv", "of no kind"), ("folder", "has no state.json")):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "rows.csv").touch()
        with pytest.raises(Refused, match=told):
            made(str(tmp_path / name))
    (tmp_path / "folder" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(Refused, match=r"holds several splits; name one: .*folder/train, .*folder/test"):
        made(str(tmp_path / "folder"))


def test_without_pyarrow_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        Refused, match=r"pyarrow, which reads it, is not installed; pip install 'rlpost\[datasets\]'"
    ):
        made(str(tmp_path / "rows.parquet"))


def test_parquet_arrow_and_what_save_to_disk_writes(tmp_path: Path) -> None:
    """The folder is laid out as `datasets` 4 does it: Arrow streams, named by state.json."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "saved"
    folder.mkdir()
    for number, rows in enumerate((ROWS[:30], ROWS[30:])):
        table = pyarrow.Table.from_pylist(rows)
        with (
            pyarrow.OSFile(str(folder / f"data-{number}.arrow"), "wb") as sink,
            pyarrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(table)  # fmt: skip
    listed = [{"filename": f"data-{number}.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": listed}))
    everything = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(everything, tmp_path / "rows.parquet")
    with (
        pyarrow.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink,
        pyarrow.ipc.new_file(sink, everything.schema) as out,
    ):
        out.write_table(everything)  # fmt: skip
    narrow = pyarrow.table({"prompt": ["a", "b"], "answer": pyarrow.array([0.1, None], pyarrow.float32())})
    parquet.write_table(narrow, tmp_path / "narrow.parquet")
    assert [row["answer"] for _, row in files.read(str(tmp_path / "narrow.parquet"))] == [0.1, None]
    for path in (folder, tmp_path / "rows.parquet", tmp_path / "rows.arrow"):
        assert prompts(made(str(path)), "default", "all") == {row["prompt"] for row in ROWS}
    with pytest.raises(Refused, match=r"rows.parquet, row 0: its field 'text' is missing"):
        made(str(tmp_path / "rows.parquet"), prompt="text")
    (tmp_path / "rows.parquet").write_bytes(b"no columns")
    with pytest.raises(Refused, match=r"rows.parquet: cannot be read"):
        made(str(tmp_path / "rows.parquet"), prompt="prompt", answer="kind")


def test_the_authors_check_takes_it(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        f"path={path}",
        "score=exact",
        "expert=answer",
        "variant=kind",
        'held_out=["odd"]',
        "eval_share=0.4",
    ]
    argv = [part for each in arguments for part in ("--arg", each)]
    assert check.main(["dataset", "--instances", "5", *argv]) == 0
    assert "FAILED" not in capsys.readouterr().out


def test_the_authors_check_tells_of_repeated_rows(path: str) -> None:
    written(Path(path), [*ROWS, {**ROWS[3], "answer": "no"}])
    found = list(check.findings(check.Subject("dataset", {"path": path, "score": "exact"}, 2)))
    (told,) = [each.told for each in found if each.check == "rows"]
    assert told.startswith("1 of 61 rows repeat the prompt of an earlier one")
    assert "1 of these have another answer" in told


def test_a_scorer_is_tried_on_rows_of_every_kind(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "answer": n} for n in range(9)] + [{"prompt": "last"}]
    env = made(written(tmp_path / "m.jsonl", rows), score="my_scorers:right")
    tried = env.rehearsals()
    assert [what for what, _ in tried] == [
        f"score=my_scorers:right of the answer {answer!r} to {tmp_path}/m.jsonl:{line}"
        for answer, line in (("", 1), ("0", 1), ("", 10))
    ]
    for _, call in tried[:2]:
        call()
    with pytest.raises(KeyError, match="answer"):
        tried[2][1]()
    assert made(written(tmp_path / "m.jsonl", rows[:9]), score="exact").rehearsals() == []
