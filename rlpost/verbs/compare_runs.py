"""Compares several runs on one page: rlpost compare-runs A B ... [-o FILE.html]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlpost.errors import ConfigError
from rlpost.record.files import write_atomic

PAGE = Path("compare-runs.html")


def main(argv: Sequence[str]) -> int:
    """Write one self-contained page about several runs, finished or not; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rlpost compare-runs", description=main.__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directories; the first is the baseline"
    )
    parser.add_argument("-o", "--output", type=Path, default=PAGE, metavar="FILE.html", help="written anew")
    asked = parser.parse_args(argv)
    _compare(asked.runs, asked.output)
    return 0


def _compare(folders: Sequence[Path], output: Path) -> None:
    from rlpost.verbs import runs_page

    _refuse(folders)
    if output.suffix != ".html":
        raise ConfigError(
            f"-o {output}\n  reason: the page is HTML\n  remedy: give a name that ends with .html"
        )
    write_atomic(output, runs_page.page(runs_page.read(folders)))
    print(output)


def _refuse(folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        raise ConfigError("compare-runs: one run has nothing to be compared with\n  remedy: name two or more")
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        twice = next(folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1)
        raise ConfigError(f"{twice}\n  reason: it is named twice\n  remedy: name each run once")
