"""The pages keep their promises: links lead somewhere, what they name exists, lines are wrapped."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from rlpost.config.compose import compose
from rlpost.config.schema import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "rlpost").rglob("*.md")])
WRAPPED = [page for page in PAGES if page.name != "CHANGELOG.md" and "assets" not in page.parts]
WIDTH = 120
LIVING = [page for page in PAGES if page.name != "CHANGELOG.md" and "results" not in page.as_posix()]

# A folder that stands in the root, or in rlpost/: architecture.md leaves that out.
_FILE = re.compile(
    r"`((?:rlpost|envs|tests|experiments|benchmarks|requirements|docs|\.ci)/[\w./]*|\w[\w./]*/\w+\.py)`"
)
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names by which headings are linked to, as GitHub makes them."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(page)))
    return {heading.strip().replace(" ", "-") for heading in plain}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in _LINK.findall(prose(page)):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        whole = linked.exists() and (not anchor or anchor in anchors(linked))
        if not target.startswith("https://") and not whole:
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading, here\n[a](page.md#a-heading-here) [b](gone.md) [c](#no-heading)\n```\n[d](x)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "#no-heading"]


@pytest.mark.parametrize("page", WRAPPED, ids=named)
def test_lines_are_wrapped(page: Path) -> None:
    """All but a table's rows and a picture, which are one line each in Markdown."""
    lines = [line for line in prose(page).splitlines() if not line.lstrip().startswith(("|", "!["))]
    assert [line for line in lines if len(line) > WIDTH] == []


def readme_commands() -> list[str]:
    """The second cells of the table of uses, `...` written out."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## You want to ...")[2].partition("\n## ")[0]
    cells = [row.split("|")[2].strip().strip("`") for row in table.splitlines() if row.startswith("|")]
    short = "python -m rlpost.run experiment=generalpoints_ppo"
    return [re.sub(r"^\.\.\.", short, cell) for cell in cells[2:]]


@pytest.mark.parametrize("page", LIVING, ids=named)
def test_files_that_are_named_exist(page: Path) -> None:
    named_files = _FILE.findall(prose(page))
    gone = [n for n in named_files if not (ROOT / n).exists() and not (ROOT / "rlpost" / n).exists()]
    assert [name for name in gone if "NAME" not in name] == []


def test_the_readme_has_a_dozen_uses() -> None:
    assert len(readme_commands()) >= 12


@pytest.mark.parametrize("command", readme_commands())
def test_a_command_of_the_readme_names_what_there_is(command: str) -> None:
    """Modules, experiments and settings; composing refuses the others."""
    python, option, module, *arguments = shlex.split(command)
    assert (python, option) == ("python", "-m")
    assert importlib.util.find_spec(module) is not None
    if module != "rlpost.run":
        return
    if arguments and not arguments[0].startswith("resume="):
        compose(arguments)
    else:
        known = {field.name for field in dataclasses.fields(Config)}
        assert {argument.partition("=")[0] for argument in arguments} <= known
