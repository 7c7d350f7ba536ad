from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors stand in a frame, which would cut long paths at the terminal's width."""
    monkeypatch.setenv("COLUMNS", "1000")
