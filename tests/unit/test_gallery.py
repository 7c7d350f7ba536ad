"""The gallery of papers: each experiment `paper_*` is on its page, with a rule and a verdict, and could be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlpost import run
from rlpost.compare.design.plan import plan, run_dir_of, settings_of
from rlpost.compare.design.types import is_start, row_of
from rlpost.config.experiments import experiments
from rlpost.config.schema import Config, Task
from rlpost.validate.checks import validate

PAGE = Path(__file__).parents[2] / "docs" / "gallery.md"
PAPERS = sorted(name for name in experiments() if name.startswith("paper_"))
VERDICTS = ("holds", "holds in part", "does not hold", "cannot tell here", "not run yet")
PARTS = ("Claim", "Decided before", "Minutes", "Found", "Verdict")
_SECTION = re.compile(r"^## (paper_\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| \[(paper_\w+)\]\(#\1\) \|.*\| ([\w ]+) \|$", re.MULTILINE)
_COMMAND = re.compile(r"^ *(rlpost paper_.*)$", re.MULTILINE)


def sections() -> dict[str, str]:
    return dict(_SECTION.findall(PAGE.read_text(encoding="utf-8")))


def verdict_in(section: str) -> str:
    (found,) = re.findall(r"^- \*\*Verdict:\*\* ([a-z ]+)[.:]", section, re.MULTILINE)
    return str(found)


def commands() -> list[str]:
    """The commands of the page that run a paper's experiment, shell variables written out as 16."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [re.sub(r"\$\w+", "16", found) for found in _COMMAND.findall(joined)]


def adapter_in(folder: Path) -> Path:
    """A folder that has an adapter's files, by name."""
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).touch()
    return folder


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return adapter_in(tmp_path / "teacher" / "adapter")


def prepared(command: str, teacher: Path) -> Config:
    _, name, *settings = shlex.split(command)
    given = [re.sub(r"^algo\.teacher=.*", f"algo.teacher={teacher}", each) for each in settings]
    return run.prepare([f"experiment={name}", *given])


def test_every_paper_has_a_section_and_a_row_and_nothing_else_has() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert list(sections()) == [name for name, _ in _ROW.findall(page)]
    assert sorted(sections()) == PAPERS


@pytest.mark.parametrize("name", PAPERS)
def test_a_section_has_every_part_and_a_verdict_of_the_list(name: str) -> None:
    section = sections()[name]
    assert tuple(re.findall(r"^- \*\*([\w ]+):\*\*", section, re.MULTILINE)) == PARTS
    assert f"rlpost {name}" in section
    assert verdict_in(section) in VERDICTS


def test_the_table_has_the_verdicts_of_the_sections() -> None:
    rows = dict(_ROW.findall(PAGE.read_text(encoding="utf-8")))
    assert rows == {name: verdict_in(section) for name, section in sections().items()}


def test_the_page_says_what_each_verdict_means() -> None:
    rules = PAGE.read_text(encoding="utf-8").partition("## How a verdict is found")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| ([a-z ]+) \| (?!when)", rules, re.MULTILINE)) == VERDICTS


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_is_accepted(command: str, teacher: Path) -> None:
    assert prepared(command, teacher).task is Task.compare


@pytest.mark.parametrize("name", PAPERS)
def test_every_cell_of_a_paper_would_be_accepted(name: str, teacher: Path, tmp_path: Path) -> None:
    """With the adapter of the warm start where there is one."""
    needs_teacher = [f"algo.teacher={teacher}"] if name == "paper_distillation" else []
    cfg = prepared(shlex.join(["rlpost", name, *needs_teacher]), teacher)
    first = cfg.compare.seeds[0]
    for cell in (cell for cell in plan(cfg) if cell.seed == first):
        found = settings_of(cfg, cell, tmp_path, [float(n + 1) for n in range(cfg.compare.points)])
        validate(found)
        if is_start(cell.arm):  # it comes first, and leaves the adapter from which the others start
            adapter_in(run_dir_of(tmp_path, cell.name) / "adapter")
        else:
            assert found.task is row_of(cell.arm).task
