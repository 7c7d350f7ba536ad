"""Pages that need nothing but themselves: templates, in which everything that is not marked as markup is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlpost.summary import share, step_share

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> bytes:
    """A template of rlpost/templates, filled in, as UTF-8.

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
    environment.globals |= {"share": share, "step_share": step_share}
    return environment
