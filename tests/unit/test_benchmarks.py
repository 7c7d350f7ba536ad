"""Every benchmark can be imported: what it takes from rlpost still has that name."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_it_is_imported(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")
