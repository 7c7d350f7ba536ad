"""Reads a pickled mapping from (float, float) to text without unpickling: nothing in the file is ever executed.

A pickle is a program for a small stack machine. This reads the program with the standard library's disassembler
and carries out the few instructions that plain data need; any other, such as those that import or call, is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

_TEXTS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"})
_NUMBERS = frozenset({"BINFLOAT", "FLOAT", "BININT", "BININT1", "BININT2", "INT", "LONG1"})
_IGNORED = frozenset({"PROTO", "FRAME"})
_MARK = object()


class PlainPickleError(ValueError):
    """The bytes are no pickle of such a mapping."""


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def carry_out(self, name: str, argument: Any) -> None:
        if name in _TEXTS or name in _NUMBERS:
            self.stack.append(argument)
        elif name not in _IGNORED:
            if name not in _INSTRUCTIONS:
                raise PlainPickleError(f"the instruction {name} is not for plain data")
            _INSTRUCTIONS[name](self, argument)

    def above_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                above = self.stack[place + 1 :]
                del self.stack[place:]
                return above
        raise PlainPickleError("a mark is missing")

    def pop(self, count: int) -> tuple[Any, ...]:
        taken = tuple(self.stack[-count:])
        if len(taken) < count or any(each is _MARK for each in taken):
            raise PlainPickleError("the stack is too short")
        del self.stack[-count:]
        return taken

    def store(self, items: list[Any]) -> None:
        if not self.stack or not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise PlainPickleError("items are stored into what is no mapping")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_checked_key(key)] = _checked_value(value)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, number: int | None) -> None:
        if not self.stack:
            raise PlainPickleError("the stack is too short")
        self.memo[len(self.memo) if number is None else number] = self.stack[-1]

    def recall(self, number: int) -> None:
        if number not in self.memo:
            raise PlainPickleError("something is recalled that was never stored")
        self.stack.append(self.memo[number])


def _checked_key(key: Any) -> tuple[float, float]:
    if isinstance(key, tuple) and len(key) == 2 and all(type(each) in (float, int) for each in key):
        return float(key[0]), float(key[1])
    raise PlainPickleError("a key is not a pair of numbers")


def _checked_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise PlainPickleError("a value is not a text")


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: _new_dict(machine),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.above_mark())),
    "SETITEM": lambda machine, _: machine.store(list(machine.pop(2))),
    "SETITEMS": lambda machine, _: machine.store(machine.above_mark()),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, number: machine.remember(int(number))),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, number: machine.recall(int(number))),
}


def _new_dict(machine: _Machine) -> None:
    items = machine.above_mark()
    machine.push({})
    machine.store(items)


def read_mapping(data: bytes) -> dict[tuple[float, float], str]:
    """The mapping that a pickle holds. PlainPickleError for anything else, attacks included."""
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name == "STOP":
                break
            machine.carry_out(instruction.name, argument)
    except PlainPickleError:
        raise
    except (ValueError, IndexError, OverflowError, TypeError, AttributeError) as error:
        # What pickletools raises for a broken file.
        raise PlainPickleError(f"not a pickle: {error}") from error
    if len(machine.stack) != 1 or not isinstance(machine.stack[0], dict):
        raise PlainPickleError("it holds no mapping")
    return machine.stack[0]
