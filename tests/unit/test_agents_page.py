"""The blocks of docs/agents.md run: its files are written, and its commands play episodes without a fault."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "agents.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_pages_agents_play(tmp_path: Path) -> None:
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    for kind, text in blocks:
        if kind == "python":
            (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
    commands = [text for kind, text in blocks if kind == "sh"]
    assert len(commands) == 2
    said = [_run(command, tmp_path) for command in commands]
    for text in said:
        assert "agent, dry run" in text
        rows = [
            [cell.strip() for cell in line.split("│")[1:-1]]
            for line in text.splitlines()
            if "│ default" in line
        ]
        assert [row[1] for row in rows] == ["train", "eval"]
        assert all(int(row[2]) > 0 and row[3] == "0" for row in rows), (
            "episodes are played, none with an error"
        )
    assert "That is wrong. Try again." in said[0]


def _run(command: str, folder: Path) -> str:
    """A command as a reader types it, with this Python and this checkout."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
    }
    shell = ["bash", "-euo", "pipefail", "-c", command]
    done = subprocess.run(
        shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
