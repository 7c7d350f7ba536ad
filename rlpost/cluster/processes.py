"""Processes that this one has started."""

from __future__ import annotations

import contextlib
import subprocess

import psutil


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all its children, and wait for its end. Does nothing if it has ended."""
    if process.poll() is not None:
        return
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        for each in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.Error):
                each.kill()
    process.wait()
