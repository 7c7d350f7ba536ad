"""A live page of a run or a comparison, in the browser: rlpost watch RUN."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from rlpost.errors import ConfigError, OutputError

EVERY_S = (1, 3600)
WAIT_S = 60.0  # for a folder that is not there yet
POLL_S = 0.2


def main(argv: Sequence[str]) -> int:
    """Serve a page of a run, or of a comparison, that follows its record until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(prog="rlpost watch", description=main.__doc__)
    parser.add_argument("folder", type=Path, metavar="RUN", help="as the run printed it, at work or not")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0, the default: a free one")
    parser.add_argument(
        "--every", type=int, default=5, metavar="SECONDS", help="between two looks (default 5)"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_S,
        metavar="SECONDS",
        help="for a folder that is not there yet (default %(default)g)",
    )
    asked = parser.parse_args(argv)
    _watch(asked.folder, asked.port, asked.every, asked.wait)
    return 0


def _watch(folder: Path, port: int, every: int, wait: float) -> None:
    from rlpost.verbs.watch_server import serving

    _refuse(port, every, wait)
    wait_for(folder, wait)
    with serving(folder, port, every) as server:
        print(f"{server.url}\nCtrl-C ends it; the run goes on without it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=POLL_S)


def _refuse(port: int, every: int, wait: float) -> None:
    if not 0 <= port <= 65535:
        raise ConfigError(
            f"--port {port}\n  reason: it is no port\n  remedy: 1 to 65535, or 0 for a free one"
        )
    least, most = EVERY_S
    if not least <= every <= most:
        raise ConfigError(
            f"--every {every}\n  reason: it is out of range\n  remedy: {least} to {most} seconds"
        )
    if not 0 <= wait < float("inf"):
        raise ConfigError(
            f"--wait {wait}\n  reason: a wait needs an end\n  remedy: a number of seconds, 0 or more"
        )


def wait_for(folder: Path, seconds: float) -> None:
    """Until the folder holds a record. Raises OutputError where it holds none by then."""
    deadline, told = time.monotonic() + seconds, False
    while not (folder / "config.yaml").is_file():
        if time.monotonic() >= deadline:
            raise OutputError(
                f"{folder}\n  reason: after {seconds:g} s it holds no run and no comparison (config.yaml is missing)\n"
                "  remedy: name the folder that a run printed, or give it more time with --wait"
            )
        if not told:
            print(f"Waiting up to {seconds:g} s for {folder}/config.yaml ...", flush=True)
            told = True
        time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
