"""The tutorial's blocks run: its files are written, and its commands succeed, in the order of the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(PAGE.read_text(encoding="utf-8")) if found == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader has written the page's files, each under the name in its first line."""
    written = tmp_path_factory.mktemp("tutorial")
    for text in blocks("python"):
        name = text.partition("\n")[0].removeprefix("# ")
        (written / name).write_text(text, encoding="utf-8")
    return written


def _run(command: str, folder: Path) -> str:
    """A command as a reader types it, with this Python and this checkout."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


SAID = {  # what a reader should see of each block
    0: ("succeeds on 20 of 20", "held out", "mmiirruubbaa"),
    1: ("dry run", "100%"),
    2: ("succeeds on 10 of 10", "100%", "hard"),
    3: ("dry run", "expert"),
    4: ("200 answers: reward", "success 100.0%", "brief: "),
    5: ("none in both",),
    6: ("succeeds on 10 of 10", "[system]", "CALL (+0): [tool]\n3\n", "NO_SUM"),
}


def test_every_block_is_run() -> None:
    assert len(blocks("sh")) == len(SAID)
    assert len(blocks("python")) == 6


@pytest.mark.parametrize("number", sorted(SAID))
def test_a_block_of_commands(number: int, folder: Path) -> None:
    shown = _run(blocks("sh")[number], folder)
    for words in SAID[number]:
        assert words in shown
    assert "FAILED" not in shown
