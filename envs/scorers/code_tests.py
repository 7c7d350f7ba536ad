"""Tests whether the Python code in an answer passes a row's tests.

A row's tests are Python (a text or a list of texts, as `assert f(2) == 4`), which runs after the code with its names;
or pairs of a program's input and output: [{"input": "2\n", "output": "4\n"}, ...]. Output is compared line by line,
without spaces at the ends of lines and of the whole.
"""

from __future__ import annotations

import ast
import re
import textwrap
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rlpost.envs.scorers.sandbox import FAILED, PASSED, TIMEOUT, Limits, run

NO_CODE = "NO_CODE"
_FENCE = re.compile(r"[ \t]*```[ \t]*([\w+-]*)[ \t]*")
_PYTHON = ("", "python", "python3", "py")

Tests = str | tuple[tuple[str, str], ...]
"""Python code, or pairs of input and output."""


def passed(answer: str, tests: object, limits: Limits) -> tuple[float, str]:
    """1 and PASSED, or 0 and the other outcome. Raises ValueError for a malformed test, OSError without a sandbox."""
    wanted, code = read_tests(tests), code_in(answer)
    if code is None:
        return 0.0, NO_CODE
    outcome = run(code, limits, wanted).outcome if isinstance(wanted, str) else _printed(code, wanted, limits)
    return float(outcome == PASSED), outcome


def code_in(answer: str) -> str | None:
    """The last block between ``` that is labelled as Python or has no label; None if there is no such block."""
    blocks = [code for language, code in _blocks(answer) if language.lower() in _PYTHON and code.strip()]
    return textwrap.dedent(blocks[-1]) if blocks else None


def _blocks(answer: str) -> Iterator[tuple[str, str]]:
    """Label and content of each closed block. It reads line by line, so no text makes it slow."""
    label: str | None = None
    content: list[str] = []
    for line in answer.split("\n"):
        fence = _FENCE.fullmatch(line.rstrip("\r"))
        if fence is None:
            content.append(line)
        elif label is None:
            label, content = fence[1], []
        else:
            yield label, "".join(f"{each}\n" for each in content)
            label, content = (fence[1], []) if fence[1] else (None, [])


def read_tests(value: object) -> Tests:
    """Raises ValueError if these are not tests, or there are none."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        if all(isinstance(each, str) and each.strip() for each in value):
            return "\n".join(value)
        return tuple(map(_pair, value))
    raise ValueError("Python, a list of it, or a list of {input, output}")


def refuse_no_python(tests: Tests) -> None:
    """Raises ValueError for tests in Python that are none: no answer could pass them. Nothing is run."""
    if isinstance(tests, str):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(tests)
        except SyntaxError as error:
            raise ValueError(f"as Python it is wrong in line {error.lineno}: {error.msg}") from error
        except (RecursionError, MemoryError) as error:
            raise ValueError("as Python it is nested too deep") from error


def _pair(value: object) -> tuple[str, str]:
    if isinstance(value, Mapping):
        read, printed = value.get("input"), value.get("output")
        if isinstance(read, str) and isinstance(printed, str):
            return read, printed
    raise ValueError("Python, a list of it, or a list of {input, output}, each a text")


def _printed(code: str, pairs: Sequence[tuple[str, str]], limits: Limits) -> str:
    """The outcome of the first pair that fails. All pairs share the time limit."""
    ends = time.monotonic() + limits.time_s
    for read, printed in pairs:
        left = ends - time.monotonic()
        if left <= 0:
            return TIMEOUT
        result = run(code, replace(limits, time_s=left), stdin=read, may_exit=True)
        if result.outcome != PASSED:
            return result.outcome
        if _lines(result.output) != _lines(printed):
            return FAILED
    return PASSED


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
