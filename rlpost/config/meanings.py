"""The meaning of each setting: the comment beside its default in rlpost/config/schema.py, read from the source.

A meaning is written only in that comment, so a setting is added in one line. `rlpost settings` prints it, and a test
fails for a setting without one.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import tokenize
import typing
from collections.abc import Iterator, Mapping
from enum import Enum

from rlpost.config import schema
from rlpost.config.schema import Config


@functools.cache
def meanings() -> Mapping[str, str]:
    """The comment of every setting by its dotted key; empty if it has none."""
    return dict(_of_settings(Config, "", comments(inspect.getsource(schema))))


def choice_meanings(kind: type[Enum]) -> dict[str, str]:
    """The comment of every member of an enumeration of the schema; empty if it has none."""
    found = comments(inspect.getsource(schema)).get(kind.__name__, {})
    return {member.name: found.get(member.name, "") for member in kind}


def comments(source: str) -> dict[str, dict[str, str]]:
    """The comment of every attribute that a module assigns in a class body, by class.

    A comment is on the attribute's own lines, or on the lines directly above that contain nothing else.
    """
    code, alone = _comment_lines(source)
    return {
        node.name: {
            name: _comment(statement, code, alone) for statement in node.body for name in _assigned(statement)
        }
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }


def _comment_lines(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line number: those beside code, and those on lines of their own."""
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = not token.line[: token.start[1]].strip()
            (alone if own_line else beside)[token.start[0]] = token.string.lstrip("#").strip()
    return beside, alone


def _assigned(statement: ast.stmt) -> Iterator[str]:
    targets: list[ast.expr] = []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    elif isinstance(statement, ast.Assign):
        targets = statement.targets
    yield from (target.id for target in targets if isinstance(target, ast.Name))


def _comment(statement: ast.stmt, beside: Mapping[int, str], alone: Mapping[int, str]) -> str:
    above = statement.lineno - 1
    while above in alone:
        above -= 1
    lines = range(above + 1, (statement.end_lineno or statement.lineno) + 1)
    return " ".join(text for line in lines if (text := beside.get(line) or alone.get(line)))


def _of_settings(
    group: type, prefix: str, found: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, str]]:
    for name, kind in typing.get_type_hints(group).items():
        if dataclasses.is_dataclass(kind):
            yield from _of_settings(typing.cast(type, kind), f"{prefix}{name}.", found)
        else:
            yield f"{prefix}{name}", found[group.__name__][name]
