"""Reads a pickled mapping from (float, float) to text. Nothing that the file names is imported or called.

`pickle.Unpickler` with a `find_class` that refuses everything runs no code of a file. Its work is not bounded, though:
six bytes that store into memo place 4294967295 take 64 GiB, and a key of nested tuples takes 2**depth steps to hash, or
overflows the C stack. So the instructions are listed first, and only those that such a mapping needs are accepted.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NoReturn

_NUMBERS = frozenset({"BINFLOAT", "FLOAT", "BININT", "BININT1", "BININT2", "INT"})
_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_PLAIN = (
    _NUMBERS
    | _STORES
    | {
        *("PROTO", "FRAME", "STOP", "MARK", "TUPLE", "TUPLE2", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
        *("MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    }
)


class PlainPickleError(ValueError):
    """The bytes are not a pickle of such a mapping."""


class PlainUnpickler(pickle.Unpickler):
    """Imports nothing. It is a second barrier, in case an instruction passes `_check_instructions`."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise PlainPickleError(f"{module}.{name} is not for plain data")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise PlainPickleError("a persistent id is not for plain data")


def read_mapping(data: bytes) -> dict[tuple[float, float], str]:
    """The mapping in a pickle. Raises PlainPickleError for anything else, attacks included."""
    try:
        _check_instructions(data)
        mapping = PlainUnpickler(io.BytesIO(data)).load()
    except PlainPickleError:
        raise
    except Exception as error:  # pickle documents no closed list of the errors for damaged files
        raise PlainPickleError(f"not a pickle: {error}") from error
    if not isinstance(mapping, dict):
        raise PlainPickleError("it holds no mapping")
    return {_checked_key(key): _checked_value(value) for key, value in mapping.items()}


def _check_instructions(data: bytes) -> None:
    """Refuse instructions that are not plain, tuples of anything but two numbers, and high memo places."""
    before: list[str] = []  # at most three instructions, a number's as "number"
    for place, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        name = instruction.name
        if name not in _PLAIN:
            raise PlainPickleError(f"the instruction {name} is not for plain data")
        if name in _STORES and int(argument or 0) > place:
            raise PlainPickleError("the memo skips places")
        if name == "TUPLE" and before != ["MARK", "number", "number"]:
            raise PlainPickleError("a key is not a pair of numbers")
        if name == "TUPLE2" and before[1:] != ["number", "number"]:
            raise PlainPickleError("a key is not a pair of numbers")
        if name != "FRAME":  # may come between any two instructions
            before = [*before[-2:], "number" if name in _NUMBERS else name]


def _checked_key(key: Any) -> tuple[float, float]:
    if isinstance(key, tuple) and all(type(each) in (float, int) for each in key):  # no bool
        return float(key[0]), float(key[1])
    raise PlainPickleError("a key is not a pair of numbers")


def _checked_value(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise PlainPickleError("a value is not a text")
