"""The page of a run or of a comparison, finished or not: python -m rlpost.report FOLDER."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlpost.compare import results
from rlpost.compare.report import page
from rlpost.errors import OutputError, RlpostError
from rlpost.pages.run_page import write_report
from rlpost.record.run_dir import RunDir


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page of a run or of a comparison, finished or not; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rlpost report", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="as the run printed it")
    parser.add_argument(
        "--own-code",
        action="store_true",
        help="import the environment that the record names, if it is none of rlpost's, to draw the episodes",
    )
    asked = parser.parse_args(argv)
    try:
        print(_write(asked.folder, asked.own_code))
    except RlpostError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _write(folder: Path, own_code: bool) -> Path:
    if (folder / results.FILE).is_file():
        return page.write(results.read(folder / results.FILE), folder, own_code)
    run_dir = RunDir(folder)
    if not (run_dir.config.is_file() and run_dir.trajectories.is_dir()):
        raise OutputError(
            f"{folder}\n  reason: it holds neither a run (config.yaml, trajectories/) nor a comparison of which a cell"
            f" has ended ({results.FILE})\n  remedy: name the folder that an earlier start printed"
        )
    return write_report(run_dir, own_code)


if __name__ == "__main__":
    sys.exit(main())
