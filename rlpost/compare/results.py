"""Writes a Comparison to results.json, as strict JSON, and reads it back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from rlpost.compare.design.types import (
    ArmsAgreement,
    Cell,
    ComparedVariant,
    Comparison,
    Evaluation,
    Point,
    Retained,
    Role,
    Status,
)
from rlpost.errors import OutputError
from rlpost.record.compute import Compute
from rlpost.record.files import write_atomic

FILE = "results.json"
Record = TypeVar("Record")


def write(comparison: Comparison, folder: Path) -> Path:
    """Write results.json in one atomic step. Raises ValueError if a number is not finite."""
    path = folder / FILE
    text = json.dumps(asdict(comparison), allow_nan=False, separators=(",", ":"))
    write_atomic(path, text.encode() + b"\n")
    return path


def read(path: Path) -> Comparison:
    """Inverse of `write`. Raises OutputError if `write` did not write the file."""
    try:
        return _comparison(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{path}\n  reason: it holds no comparison ({error})\n  remedy: write it anew with resume="
        ) from error


def _comparison(record: Mapping[str, Any]) -> Comparison:
    return _made(
        Comparison,
        {"agreements": [], "contrasts": [], **record},  # records of before there were any have none
        variants=lambda given: {
            name: _made(ComparedVariant, each, role=Role) for name, each in given.items()
        },
        arms=tuple,
        seeds=tuple,
        cells=lambda given: tuple(map(_cell, given)),
        base=lambda given: None if given is None else _evaluations(given),
        agreements=lambda given: tuple(_made(ArmsAgreement, each) for each in given),
        contrasts=lambda given: tuple((str(arm), str(baseline)) for arm, baseline in given),
    )


def _cell(record: Mapping[str, Any]) -> Cell:
    return _made(
        Cell,
        {"spectrum": None, "retention": [], **record},
        status=Status,
        points=lambda given: tuple(map(_point, given)),
        retention=lambda given: tuple(_made(Retained, each, evaluations=_evaluations) for each in given),
    )


def _point(record: Mapping[str, Any]) -> Point:
    return _made(Point, record, compute=_compute, evaluations=_evaluations)


def _compute(record: Mapping[str, Any]) -> Compute:
    """Records of before rollouts were counted have no counts of them."""
    return _made(Compute, {"rollouts": None, "correct_rollouts": None, **record})


def _evaluations(record: Mapping[str, Any]) -> dict[str, Evaluation]:
    lists = dict.fromkeys(("instances", "successes", "outcomes", "solved_at"), tuple)
    return {variant: _made(Evaluation, each, **lists) for variant, each in record.items()}


def _made(kind: type[Record], record: Mapping[str, Any], **turn: Callable[[Any], Any]) -> Record:
    """Build a dataclass from its fields; none may be missing or unknown. `turn` converts the fields that need it."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if names != set(record):
        raise ValueError(
            f"a {kind.__name__} has {', '.join(sorted(names))}; here are {', '.join(sorted(record))}"
        )
    return kind(**{name: turn.get(name, _same)(value) for name, value in record.items()})


def _same(value: Any) -> Any:
    return value
