"""What `make setup` asks before it installs anything. A "no" ends it, with the reason and the remedy.

    PYTHON requirements/check.py python             is this a Python that rlpost was tried on?
    .venv/bin/python requirements/check.py builds FILE
                                                    does pip find the builds in FILE that PyPI does not have?

Standard library only. It must also load in the Pythons that it refuses, the oldest of which is 3.6.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def refuse_python(version: tuple, requires: str) -> None:
    """Exit unless `version`, such as (3, 12), is one of `requires`, such as ">=3.11,<3.14"."""
    lowest, beyond = (int(minor) for minor in re.findall(r"3\.(\d+)", requires))
    if not (3, lowest) <= version < (3, beyond):
        tried = ", ".join(f"3.{minor}" for minor in range(lowest, beyond))
        sys.exit(
            refusal(
                f"PYTHON={sys.executable}",
                f"it is Python {version[0]}.{version[1]}; rlpost was tried on {tried}",
                f"make PYTHON=python3.{lowest}",
            )
        )


def requires_python() -> str:
    """What pyproject.toml asks for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^requires-python = "(.+)"', text, re.MULTILINE)[0]


def refuse_missing_builds(requirements: Path) -> None:
    """Exit unless this Python's pip finds every local build (`==2.13.0+cpu`) that `requirements` pins, or has it."""
    pins = re.findall(r"^([\w.-]+)==(\S+\+\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    for name, version in pins:
        if not installed(name, version):
            reply = subprocess.run(
                [sys.executable, "-m", "pip", "index", "versions", "--retries=1", "--timeout=15", name],
                capture_output=True,
                text=True,
                check=False,
            )
            refuse_build(name, version, reply.stdout, reply.stderr)


def installed(name: str, version: str) -> bool:
    from importlib import metadata

    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def refuse_build(name: str, version: str, found: str, complaints: str) -> None:
    """Exit unless `found`, the output of `pip index versions NAME`, lists `version`.

    An index that could not be asked is told apart by pip's complaints: it retried, or found no version at all.
    """
    listed = re.findall(r"^Available versions: (.*)$", found, re.MULTILINE)
    if version in ", ".join(listed).split(", "):
        return
    pin = f"{name}=={version}"
    if not listed or "Retrying" in complaints:
        words = [line for line in complaints.splitlines() if "experimental command" not in line]
        sys.exit(
            refusal(
                pin,
                "pip could not ask its package index. " + "\n          ".join(words),
                "check the network, and HTTPS_PROXY and PIP_INDEX_URL where you need them; then try again",
            )
        )
    sys.exit(
        refusal(
            pin,
            "pip finds no such build for Python {}.{}; PyPI does not have it".format(*sys.version_info),
            "set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index, and try again",
        )
    )


def refusal(what: str, reason: str, remedy: str) -> str:
    return f"{what}\n  reason: {reason}\n  remedy: {remedy}"


if __name__ == "__main__":
    if sys.argv[1] == "python":
        refuse_python(sys.version_info[:2], requires_python())
    else:
        refuse_missing_builds(Path(sys.argv[2]))
