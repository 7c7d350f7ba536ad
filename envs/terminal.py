"""The console that prints what it is given: a name, an answer or a path may look like rich's markup or emoji codes."""

from __future__ import annotations

from typing import IO

from rich.console import Console


def plain_console(
    stderr: bool = False, file: IO[str] | None = None, width: int | None = None, terminal: bool | None = None
) -> Console:
    """A console for which `[bold]` and `:100:` are text, in lines and in cells of tables; styles go by `style=`.

    Panels' titles and spinners parse markup whatever the console says: give them a rich.text.Text.
    `terminal`: whether to write control codes; None asks `file`.
    """
    return Console(
        stderr=stderr,
        file=file,
        width=width,
        force_terminal=terminal,
        markup=False,
        emoji=False,
        highlight=False,
    )
