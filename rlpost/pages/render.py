"""Pages that need nothing but themselves: templates, in which everything that is not marked as markup is escaped."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlpost.record.summary import share, step_share, unplayed

TEMPLATES = Path(__file__).parent / "templates"
# What Markdown reads as more than text within a line; an underscore between letters or digits is none.
_MARKS = re.compile(r"[\\`*|~]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[]")


def render(template: str, **values: Any) -> bytes:
    """A template of rlpost/templates (NAME.html.jinja or NAME.md.jinja), filled in, as UTF-8.

    What UTF-8 cannot hold (lone surrogates in a model's answer) becomes a reference, which browsers show as U+FFFD.
    """
    page = _environment().get_template(template).render(**values)
    return page.encode("utf-8", "xmlcharrefreplace")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"share": share, "step_share": step_share, "unplayed": unplayed}
    environment.filters["in_cell"] = in_cell
    return environment


def in_cell(text: str) -> Markup:
    """A text for a cell of a Markdown table: on one line, and neither Markdown nor HTML is read from it."""
    said = _MARKS.sub(lambda found: f"&#{ord(found[0])};", html.escape(text, quote=False))
    return Markup("<br>".join(said.splitlines()))
