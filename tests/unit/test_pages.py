"""Any text stands in a page as it is: nothing of it is read as Markdown or HTML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rlpost.pages.render import in_cell
from rlpost.pages.run_page import write_report
from rlpost.record.run_dir import RunDir, evaluation_name
from tests.unit.episodes import episode, turn
from tests.unit.pages import Page

ODD = (
    *(
        "a|b",
        "_hard_",
        "__init__",
        "**x**",
        "`c`",
        "<b>",
        "[x](y)",
        "![x](y)",
        "~~z~~",
        "a\\b",
        "a\\|b",
        "[hard]",
    ),
    *("x[/b]", "&amp;", "é 漢", "two\nlines", "http://x.y", "<http://x.y>", "$x$", "100%", "a/b", "-", "#1"),
)
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def bare(text: str) -> str:
    return re.sub(r"\s+", "", text)


def table_of(text: str) -> Page:
    return Page(MARKDOWN.render(f"| {in_cell('head')} | b |\n| --- | --- |\n| {in_cell(text)} | after |\n"))


@given(st.text(alphabet="ab|_*`<>[]()!~\\&;#-$ \n1.", max_size=10))
@example("".join(ODD))
def test_a_cell_of_a_markdown_table_shows_its_text(text: str) -> None:
    page = table_of(text)
    assert {tag for tag, _ in page.tags} <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert bare(page.text) == bare(f"headb{text}after")


@pytest.mark.parametrize("name", ["faces_10", "a-b", "level 1", "3.5"])
def test_plain_names_stay_readable(name: str) -> None:
    assert in_cell(name) == name


@pytest.mark.parametrize("variant", [*ODD, ""])
def test_a_run_page_shows_any_variant(tmp_path: Path, variant: str) -> None:
    run_dir = RunDir.create(tmp_path / "run", "demo", 0, "name: demo\ntrain_variant: x\n")
    run_dir.write_trajectories(
        evaluation_name("before", variant, "sampled"), [episode(turn(), variant=variant)]
    )
    page = Page(write_report(run_dir).read_text(encoding="utf-8"))
    assert f"{variant} (not trained), sampled: success" in page.text
    assert {"img", "table", "article"} <= {tag for tag, _ in page.tags}, "outcomes, success, sample episodes"
    assert any(bare(variant) in bare(image["alt"] or "") for image in page.all("img"))
