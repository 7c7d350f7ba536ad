"""Mappings of positions to names are read; everything else is refused and nothing is executed."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from rlpost.envs.navigation.plain_pickle import PlainPickleError, PlainUnpickler, read_mapping

MAPPINGS: list[dict[tuple[float, float], str]] = [
    {},
    {(1.5, -2.25): "a"},
    {(float(n), n / 7): f"pano {n} \u4e16" for n in range(3000)},
    {(1.0, 2.0): "same", (3.0, 4.0): "same"},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("mapping", MAPPINGS, ids=len)
def test_mappings_survive_every_protocol(protocol: int, mapping: dict[tuple[float, float], str]) -> None:
    assert read_mapping(pickle.dumps(mapping, protocol)) == mapping


def test_whole_numbers_are_positions_too() -> None:
    assert read_mapping(pickle.dumps({(1, 2): "a"})) == {(1.0, 2.0): "a"}


class _Attack:
    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call[0], self._call[1:]


def _attacks(target: Path) -> list[object]:
    return [
        _Attack(os.system, f"touch {target}"),
        {(1.0, 2.0): _Attack(os.mkdir, str(target))},
        {_Attack(tuple, (1.0, 2.0)): "a"},
        collections.OrderedDict({(1.0, 2.0): "a"}),
        Path("x"),
        _Attack(eval, "1+1"),
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_attacks_are_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "touched"
    for attack in _attacks(target):
        with pytest.raises(PlainPickleError, match="is not for plain data"):
            read_mapping(pickle.dumps(attack, protocol))
    assert not target.exists()


OTHERS: list[object] = [[], "text", 3, None, {"a": "b"}, {1: 2}, {(1.0, 2.0): 3}, {(True, 2.0): "a"}]
OTHERS += [{(1.0,): "a"}, {(1.0, 2.0, 3.0): "a"}]


@pytest.mark.parametrize("value", OTHERS, ids=repr)
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(PlainPickleError):
        read_mapping(pickle.dumps(value))


BROKEN = [b"", b".", b"}", b"(.", b"(d", b"0.", b"h\x01.", b"j\xff\xff\xff\x7f.", b"u.", b"}(h\x00u."]
BROKEN += [
    b"\x80\x04\x95" + b"\xff" * 8,
    b"}X\xff\xff\xff\x7f",
    b"}\x8d" + b"\xff" * 8,
    b"(" * 100_000 + b".",
]
NUMBER = b"G" + b"\0" * 8
BROKEN += [
    b"}r\xff\xff\xff\xff.",  # a memo of 64 GiB
    b"}"
    + NUMBER * 2
    + b"\x86"
    + b"q\x00h\x00\x86" * 60
    + b"X\x01\0\0\0as.",  # a key that takes 2**60 steps to hash
    b"}"
    + b"(" * 100_000
    + NUMBER
    + b"t" * 100_000
    + b"X\x01\0\0\0as.",  # one whose hash overruns the C stack
    b"}((" + NUMBER * 2 + b"t" + NUMBER * 2 + b"tX\x01\0\0\0as.",  # a pair inside a key
    b"\x96\xff\xff\xff\xff\xff\0\0\0.",  # a bytearray of 1 TiB
]
BROKEN += [b"cos\nsystem\n(S'true'\ntR.", b"}r\xff\xff\xff\xff"]


@pytest.mark.parametrize("data", BROKEN)
def test_broken_programs_are_refused_cheaply(data: bytes) -> None:
    with pytest.raises(PlainPickleError):
        read_mapping(data)


def test_the_unpickler_itself_finds_no_class_and_loads_no_persistent_id(tmp_path: Path) -> None:
    """The second lock, without the list of instructions before it."""
    target = tmp_path / "touched"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for attack in _attacks(target):
            with pytest.raises(PlainPickleError, match="is not for plain data"):
                PlainUnpickler(io.BytesIO(pickle.dumps(attack, protocol))).load()
    for persistent in (b"Pname\n.", b"Vname\nQ."):
        with pytest.raises(PlainPickleError, match="persistent id"):
            PlainUnpickler(io.BytesIO(persistent)).load()
    assert not target.exists()


def test_any_bytes_are_read_or_refused() -> None:
    rng = random.Random(0)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        whole = pickle.dumps({(n / 3, 2.0): f"p{n}" for n in range(20)}, protocol)
        for _ in range(150):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            try:
                found = read_mapping(bytes(data))
            except PlainPickleError:
                continue
            assert all(isinstance(value, str) for value in found.values())
