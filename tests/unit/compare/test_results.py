"""results.json: exact there and back, and nothing else is taken for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlpost.compare import results
from rlpost.compare.design.types import (
    ArmsAgreement,
    Cell,
    ComparedVariant,
    Comparison,
    Evaluation,
    Point,
    Role,
    Status,
)
from rlpost.errors import OutputError
from rlpost.record.compute import Compute

EVALUATION = Evaluation(("24:1-2-3-4", "24:2-2-3-4"), (True, False), ("CORRECT", "SYNTAX"), (2, 0), None)
COMPARISON = Comparison(
    name="x",
    env="generalpoints",
    model="tiny",
    train_variant="a",
    variants={
        "a": ComparedVariant(Role.TRAINED, "trained"),
        "b": ComparedVariant(Role.SAME_RULE, "held out"),
    },
    arms=("sft", "ppo"),
    seeds=(0, 1),
    matched_on="flops",
    cells=(
        Cell(
            "ppo",
            0,
            Status.DONE,
            "cells/ppo-0",
            points=(Point(1.0, Compute(1.5e12, 10, 2.5, 64, 12), {"a": EVALUATION}),),
            spectrum={"relative_norm": 0.25},
        ),
        Cell("sft", 0, Status.FAILED, "cells/sft-0", "it broke"),
    ),
    notes={"command": "python -m rlpost.run"},
    causes={"SYNTAX": "syntax"},
    base={"a": EVALUATION},
    agreements=(ArmsAgreement(0, "sft", "ppo", {"cosine": 0.5}),),
    contrasts=(("ppo", "sft"),),
)


def test_round_trip(tmp_path: Path) -> None:
    assert results.read(results.write(COMPARISON, tmp_path)) == COMPARISON


def test_a_record_of_before_there_were_spectra_has_none(tmp_path: Path) -> None:
    path = results.write(COMPARISON, tmp_path)
    record = json.loads(path.read_bytes())
    del record["agreements"], record["cells"][0]["spectrum"]
    path.write_text(json.dumps(record))
    found = results.read(path)
    assert (found.agreements, found.cells[0].spectrum) == ((), None)


def test_a_record_of_before_rollouts_were_counted_has_no_counts(tmp_path: Path) -> None:
    path = results.write(COMPARISON, tmp_path)
    record = json.loads(path.read_bytes())
    compute = record["cells"][0]["points"][0]["compute"]
    del compute["rollouts"], compute["correct_rollouts"]
    path.write_text(json.dumps(record))
    found = results.read(path).cells[0].points[0].compute
    assert (found.rollouts, found.correct_rollouts) == (None, None)


@pytest.mark.parametrize(
    "broken",
    [
        lambda record: record.pop("arms"),
        lambda record: record.update(more=1),
        lambda record: record["cells"][0].pop("error"),
        lambda record: record["cells"][0].update(status="fine"),
        lambda record: record["cells"][0]["points"][0]["evaluations"]["a"].pop("instances"),
        lambda record: record.update(cells=3),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, broken: Any) -> None:
    path = results.write(COMPARISON, tmp_path)
    record = json.loads(path.read_text())
    broken(record)
    path.write_text(json.dumps(record))
    with pytest.raises(OutputError, match="holds no comparison"):
        results.read(path)


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    point = Point(1.0, Compute(float("nan"), 1, 1.0), {})
    cell = Cell("ppo", 0, Status.DONE, "cells/ppo-0", points=(point,))
    with pytest.raises(ValueError, match="Out of range"):
        results.write(Comparison(**{**vars(COMPARISON), "cells": (cell,)}), tmp_path)
    assert not (tmp_path / results.FILE).exists()
