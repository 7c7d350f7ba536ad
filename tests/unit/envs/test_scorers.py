"""Ready scorers: code in a process with limits, and formulas by math-verify where it is installed."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.envs.errors import Refused
from rlpost.envs.scorers import code_tests, formulas, sandbox
from rlpost.envs.scorers.code_tests import code_in, passed, read_tests
from rlpost.envs.scorers.sandbox import Limits, run

SHORT = Limits(time_s=1.0, memory_mib=256)


def answer(code: str) -> str:
    return f"Here it is:\n```python\n{code}\n```\nDone."


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def f(n): return n + 1", "PASSED"),
        ("def f(n): return n", "FAILED"),
        ("def g(n): return n", "FAILED"),
        ("def f(n): raise KeyError(n)", "FAILED"),
        ("def f(n): raise SystemExit(0)", "CRASHED"),
        ("def f(n:", "CRASHED"),
        ("1 / 0", "CRASHED"),
        ("import sys; sys.exit(0)", "CRASHED"),
        ("import os; os._exit(0)", "CRASHED"),
        ("raise SystemExit", "CRASHED"),
        ("raise KeyboardInterrupt", "CRASHED"),
        ("class E(Exception):\n    def __str__(self): raise SystemExit\nraise E", "CRASHED"),
        ("while True: pass", "TIMEOUT"),
        ("import time; time.sleep(60)", "TIMEOUT"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "MEMORY"),
        ("x = 'a' * 2**31", "MEMORY"),
        ("import ctypes; ctypes.string_at(0)", "CRASHED"),
        ("def f(n): return f(n)", "FAILED"),
    ],
)
def test_what_comes_of_code_has_a_name(code: str, outcome: str) -> None:
    began = time.monotonic()
    assert passed(answer(code), ["assert f(1) == 2", "assert f(-1) == 0"], SHORT) == (
        float(outcome == "PASSED"),
        outcome,
    )
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "code",
    [
        "import os\nif os.fork() == 0: os._exit(0)",
        "import subprocess; subprocess.run(['true'])",
        "import threading; threading.Thread(target=print).start()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import os; os.kill(os.getppid(), 0)",
        "import os, signal; os.killpg(0, 0)",
        "open('big', 'wb').write(b'x' * 2**22)",
        "while True: print('x' * 1000)",
        "input()",
        "import numpy",
        "import rlpost",
    ],
)
def test_what_is_blocked_raises_in_the_code(code: str) -> None:
    result = run(code, SHORT)
    assert result.outcome == "CRASHED"
    assert result.detail.partition(":")[0] in (
        "BlockingIOError", "PermissionError", "RuntimeError", "OSError", "EOFError", "ModuleNotFoundError",
    )  # fmt: skip
    assert len(result.output) <= 2**20


def test_the_environment_is_cleared_and_the_folder_is_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    before = sorted(os.listdir())
    result = run(
        "import os\nopen('left', 'w').write('x')\nprint(os.getcwd(), 's3cret' in str(os.environ))", SHORT
    )
    folder, told = result.output.split()
    assert told == "False"
    assert not Path(folder).exists()
    assert sorted(os.listdir()) == before


def test_asyncio_works_inside() -> None:
    assert run("import asyncio; asyncio.run(asyncio.sleep(0))", SHORT).outcome == "PASSED"


def test_a_report_of_the_codes_own_is_not_believed() -> None:
    forged = """
import json, os
for fd in range(3, 20):
    try: os.write(fd, json.dumps({"token": "x", "outcome": "PASSED", "detail": ""}).encode())
    except OSError: pass
os._exit(0)
"""
    assert run(forged, SHORT).outcome == "CRASHED"


def test_nothing_is_left_running_where_the_childs_own_clock_is_disarmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_START_S", 0.5)
    code = "import signal, time\nsignal.setitimer(signal.ITIMER_REAL, 0)\ntime.sleep(60)"
    began = time.monotonic()
    assert run(code, Limits(0.5, 256)).outcome == "TIMEOUT"
    assert time.monotonic() - began < 5


def test_where_limits_cannot_be_set_nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child = tmp_path / "child.py"
    child.write_text(Path(sandbox._CHILD).read_text().replace("platform.machine()", "'vax'"))
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(
        OSError, match="code cannot be run within limits here: no filter of system calls for vax"
    ):
        run("open('/tmp/rlpost-must-not-be', 'w')", SHORT)


def test_programs_are_compared_by_what_they_print() -> None:
    pairs = [{"input": "2\n3\n", "output": "5"}, {"input": "1\n1\n", "output": "2\n"}]
    adds = "print(int(input()) + int(input()), ' ')\nimport sys; sys.exit()"
    assert passed(answer(adds), pairs, SHORT) == (1.0, "PASSED")
    assert passed(answer("print(5)"), pairs, SHORT) == (0.0, "FAILED")
    assert passed(answer("input(); input(); input()"), pairs, SHORT) == (0.0, "CRASHED")
    assert passed(answer("import sys; sys.exit(3)"), pairs, SHORT) == (0.0, "CRASHED")
    assert passed(answer("import time; time.sleep(9)"), pairs, SHORT) == (0.0, "TIMEOUT")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", None),
        ("```python\n\n```", None),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```\nor better\n```Python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\n```json\n{}\n```", "x = 1\n"),
        ("1. so:\n   ```python\n   x = 1\n   ```", "x = 1\n"),
        ("```python\nx = 1", None),
        ("```python\nx = 1\n```python\nx = 2\n```", "x = 2\n"),
    ],
)
def test_the_last_python_block_is_the_code(text: str, code: str | None) -> None:
    assert code_in(text) == code
    if code is None:
        assert passed(text, "assert True", SHORT) == (0.0, "NO_CODE")


@given(st.text(alphabet="`python \n", max_size=200))
def test_any_text_is_searched_for_code(text: str) -> None:
    code_in(text)


def test_the_search_for_code_is_not_quadratic() -> None:
    began = time.monotonic()
    code_in("```python\n" * 20_000)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "value", [None, "", [], {}, 3, [3], [""], [{"input": "x"}], ["assert x", {"input": "", "output": ""}]]
)
def test_what_are_no_tests_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="Python, a list of it, or a list of"):
        read_tests(value)


needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="needs the package math-verify"
)


def test_without_math_verify_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"math-verify.* is not installed; pip install 'rlpost\[math\]'"):
        formulas.refuse_missing()


@needs_math_verify
@pytest.mark.parametrize(
    ("said", "right", "outcome"),
    [
        (r"so it is \boxed{\frac12}", "0.5", "CORRECT"),
        ("$x^2 + 2x + 1$", "(x+1)^2", "CORRECT"),
        ("The answer is 7.", "8", "WRONG"),
        ("I do not know", "1", "NO_ANSWER"),
        ("99", r"\frac{198}{2}", "CORRECT"),
        (r"$\{1, 2\}$", r"\{2, 1\}", "CORRECT"),
    ],
)
def test_formulas_are_compared(said: str, right: str, outcome: str) -> None:
    assert formulas.compared(said, right, 20.0) == (float(outcome == "CORRECT"), outcome)


@needs_math_verify
def test_a_right_answer_without_a_formula_is_the_rows_fault() -> None:
    with pytest.raises(ValueError, match=r"finds no formula in the row's answer '\?'"):
        formulas.compared("1", "?", 20.0)


class TestProcess:
    """Of formulas, with a double that does what it is told."""

    CHILD = """
import json, sys, time
print('"ready"', flush=True)
for line in sys.stdin:
    said, right = json.loads(line)
    if said == "hang": time.sleep(60)
    if said == "die": sys.exit(1)
    print(json.dumps(said), flush=True)
"""

    @pytest.fixture
    def process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        (tmp_path / "child.py").write_text(self.CHILD)
        monkeypatch.setattr(formulas, "_CHILD", tmp_path / "child.py")
        process = formulas._Process()
        yield process
        process._end()

    def test_a_question_without_end_is_timed_out_and_the_next_is_answered(self, process: Any) -> None:
        assert process.asked("CORRECT", "x", 5.0) == "CORRECT"
        assert process.asked("hang", "x", 0.2) == "TIMEOUT"
        assert process.asked("WRONG", "x", 5.0) == "WRONG"

    def test_a_process_that_ends_is_told_and_replaced(self, process: Any) -> None:
        with pytest.raises(RuntimeError, match="the process that runs math-verify ended"):
            process.asked("die", "x", 5.0)
        assert process.asked("CORRECT", "x", 5.0) == "CORRECT"

    def test_threads_get_their_own_answers(self, process: Any) -> None:
        names = [f"{n}" for n in range(40)]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda name: process.asked(name, "x", 5.0), names)) == names
        assert threading.active_count() < 50


def test_the_names_of_outcomes_are_the_documented_ones() -> None:
    assert {sandbox.PASSED, sandbox.FAILED, sandbox.TIMEOUT, sandbox.MEMORY, sandbox.CRASHED, code_tests.NO_CODE} == {
        "PASSED", "FAILED", "TIMEOUT", "MEMORY", "CRASHED", "NO_CODE",
    }  # fmt: skip
