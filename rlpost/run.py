"""The command line: `python -m rlpost.run experiment=NAME key=value ...`.

Composes and validates the configuration, then hands it to the task's module, which is imported only then.
Exit codes: 0 done, 1 the run failed with a stated reason, 2 the settings are refused, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlpost import __version__
from rlpost.config.compose import compose, named_by
from rlpost.config.experiments import experiments
from rlpost.config.overrides import Word
from rlpost.config.schema import Config, Task
from rlpost.envs.terminal import plain_console
from rlpost.errors import ConfigError, RlpostError

# Imported only when chosen: these bring torch, vllm and ray.
ENTRY_POINTS = {
    Task.rl: "rlpost.tasks.rl:run",
    Task.sft: "rlpost.tasks.sft:run",
    Task.eval: "rlpost.tasks.evaluate:run",
    Task.compare: "rlpost.compare.run:run",
    Task.dry_run: "rlpost.tasks.dry_run:run",
    Task.tiny_base: "rlpost.pretrain.train:run",
}

FLAGS = {"-h", "--help", "help", "list", "--version"}
USAGE = "python -m rlpost.run experiment=NAME [key=value ...]"
EXAMPLES = {
    "model=smollm2-135m": "another model: tiny, smollm2-135m, a local folder or a hub id",
    "rollout.workers=4 learner.workers=2": "more engines and learner ranks",
    "task=dry_run": "play the experiment's episodes with scripted answers, in seconds: prompts, lengths, errors",
    "ray.address=auto": "join a running Ray cluster",
    "seed=1 output_dir=outputs/mine": "another seed, a folder of your choice",
    "resume=outputs/NAME/RUN": "go on with an earlier run; needs no experiment=",
}


class Sigterm:
    """Handles SIGTERM as Ctrl-C, so that every cleanup runs for both, and remembers that it came.

    An exception's type cannot say so: Ray's waits turn every subclass of KeyboardInterrupt into a plain one.
    """

    def __init__(self) -> None:
        self.received = False

    def __call__(self, signum: int, frame: FrameType | None) -> NoReturn:
        self.received = True
        raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Exceptions that are not RlpostError keep their traceback."""
    console, sigterm = plain_console(stderr=True), Sigterm()
    try:
        if "--version" in argv:
            print(f"rlpost {__version__}")
            return 0
        if not argv or set(argv) & FLAGS:
            _print_usage(plain_console() if argv else console)
            return 0 if argv else 2
        config = prepare(argv)
        signal.signal(signal.SIGTERM, sigterm)
        dispatch(config)
    except ConfigError as error:
        print_error(console, "settings refused", str(error))
        return 2
    except RlpostError as error:
        print_error(console, type(error).__name__, str(error))
        return 1
    except KeyboardInterrupt:
        console.print("Stopped by SIGTERM." if sigterm.received else "Stopped.", style="yellow")
        return 143 if sigterm.received else 130
    return 0


def prepare(argv: Sequence[Word]) -> Config:
    """Compose and validate, importing nothing heavy. Raises ConfigError."""
    from rlpost.validate.checks import validate

    config = compose(argv)
    validate(config, named_by(argv))
    return config


def dispatch(config: Config) -> None:
    """Import the task's module and run it."""
    module, _, function = ENTRY_POINTS[config.task].partition(":")
    getattr(importlib.import_module(module), function)(config)


def _print_usage(console: Console) -> None:
    console.print(Text.assemble(("Usage:", "bold"), f" {USAGE}\n\nExperiments (experiments/*.yaml):"))
    console.print(two_columns({each.name: each.summary for each in experiments().values()}))
    console.print("\nOverrides:")
    console.print(two_columns(EXAMPLES))
    console.print("\nEvery setting, its default, range and meaning: rlpost settings [PREFIX]")


def two_columns(rows: Mapping[str, str], one_line: bool = False) -> Table:
    """Words and what they do, side by side; with `one_line`, what is too long for the console ends in an ellipsis."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    table.add_column(no_wrap=True, style="bold", min_width=max(map(len, rows)))
    # On the texts: a column that may not be wrapped is cut without a sign where another has a least width.
    table.add_column()
    for left, right in rows.items():
        table.add_row(left, Text(right, no_wrap=one_line, overflow="ellipsis" if one_line else None))
    return table


def print_error(console: Console, title: str, message: str) -> None:
    """An error as the user sees it: a red frame with its kind as the title."""
    panel = Panel(Text(message), title=Text(title), title_align="left", border_style="red", expand=False)
    console.print(panel)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
