"""Self-contained HTML and Markdown pages, rendered from auto-escaped Jinja templates."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlpost.record.summary import share, step_share, unplayed

TEMPLATES = Path(__file__).parent / "templates"
# Characters that Markdown interprets within a line. An underscore between letters or digits is not interpreted.
_MARKS = re.compile(r"[\\`*|~]|(?<![^\W_])_|_(?![^\W_])|(?<=\])[(\[]")


def render(template: str, **values: Any) -> bytes:
    """Render a template of rlpost/templates (NAME.html.jinja or NAME.md.jinja) as UTF-8.

    What UTF-8 cannot encode (lone surrogates in a model's answer) becomes a reference, which browsers show as U+FFFD.
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
    """A text for a cell of a Markdown table: on one line, and neither Markdown nor HTML is interpreted in it."""
    said = _MARKS.sub(lambda found: f"&#{ord(found[0])};", html.escape(text, quote=False))
    return Markup("<br>".join(said.splitlines()))
