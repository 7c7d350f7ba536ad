"""What users, models and environments name is printed letter by letter, though it look like markup or an emoji code."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from rlpost import run
from rlpost.compare.cells import CellFiles
from rlpost.compare.display import Display
from rlpost.config.schema import Config
from rlpost.envs import check
from rlpost.envs import list as listing
from rlpost.envs.terminal import plain_console
from rlpost.pages.console import Progress, results_table
from rlpost.tasks import dry_run

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["[hard]", "x[/b]", "broken.jsonl:100:", ":warning:", "[red]a[/red]", "\\[b]"]
SOURCES = [
    path
    for package in ("rlpost", "envs", "benchmarks", "requirements")
    for path in sorted((ROOT / package).rglob("*.py"))
]


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(width: int = 300, terminal: bool | None = None) -> Console:
    return plain_console(file=io.StringIO(), width=width, terminal=terminal)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_consoles_have_one_door(path: Path) -> None:
    """No module makes a console that parses markup, and none relies on `escape`, which leaves emoji codes in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
            assert path.name == "terminal.py"
        if isinstance(node, ast.ImportFrom):
            assert node.module not in ("rich.markup", "rich.emoji")
            assert not (node.module == "rich" and {alias.name for alias in node.names} & {"print", "markup"})
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Panel":
            titles = [k.value for k in node.keywords if k.arg in ("title", "subtitle")]
            assert not any(isinstance(title, (ast.Name, ast.JoinedStr)) for title in titles)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("console", [plain, lambda: Console(file=io.StringIO(), width=300)])
def test_results_and_progress(name: str, console: Any) -> None:
    shown = console()
    entry = {"n": 4, "success": 0.5, "low": 0.2, "high": 0.8}
    summary = {"eval": {"after": {name: {"sampled": entry}}}, "variants": {}, "train_variant": name}
    results_table(shown, summary)
    assert f"\n{name} " in text_of(shown)
    progress = Progress(shown, 2)
    progress.stage(f"evaluation of {name}")
    progress.iteration(1, {}, [f"KeyError: {name}"])
    assert f"evaluation of {name}\n" in text_of(shown)
    assert f"note: KeyError: {name}\n" in text_of(shown)


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name: str) -> None:
    shown = plain()
    run.print_error(shown, name, f"reason: {name}, row 3")
    run._print_usage(shown)
    assert f"reason: {name}, row 3" in text_of(shown)
    assert f" {name} " in text_of(shown).splitlines()[0]
    assert f"Usage: {run.USAGE}\n" in text_of(shown)


@pytest.mark.parametrize("name", NAMES)
def test_comparisons(name: str, tmp_path: Path) -> None:
    shown = plain(terminal=True)
    display = Display(shown, 1, 1)
    log = tmp_path / "cells" / "ppo-0.log"
    log.parent.mkdir()
    log.write_text(f"evaluation of {name}\n")
    files = CellFiles(tmp_path, "ppo-0")
    assert files.log == log
    display.at_work({files: 1.0})
    assert display._spinner is not None
    assert name in str(display._spinner.renderable.text)  # type: ignore[attr-defined]
    display.close()


@pytest.mark.parametrize("name", NAMES)
def test_environments_tools(name: str) -> None:
    shown = plain()
    table: Table = listing._variants_table()
    listing._add(table, name, [SimpleNamespace(name=name, held_out=False, summary=f"about {name}")])
    shown.print(table)
    assert text_of(shown).count(name) == 3
    shown = plain()
    shown.print(check._table("env", [check.Finding("a check", name, False, f"raised {name}")]))
    assert text_of(shown).count(name) == 2
    assert "FAILED" in text_of(shown)
    shown = plain()
    shown.print(dry_run._table(Config(env=name, model=name)))
    assert text_of(shown).count(name) == 2
