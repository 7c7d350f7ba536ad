"""A comparison whose cells share their engines has the results of one whose cells have processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from rlpost.weights.adapters import CONFIG_FILE, WEIGHTS_FILE
from tests.integration.runs import finish, reproducible, start

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

CELLS = ("init-3", "ppo-3", "sft-3")
SETTINGS = (
    "experiment=generalpoints_sft_vs_rl",
    "seeds=[3]",
    "dtype=float32",  # auto measures, and need not choose the same twice
    "compare.points=1",
    "algo.iterations=2",
    "algo.critic_warmup=0",
    "sft.steps=2",
    "sft.batch_size=16",
    "rollout.workers=1",
    "rollout.episodes=16",
    "eval_variants=[faces_10,faces_11_12_13]",
    "eval.episodes=8",
    "learner.threads=1",
    "tracking.wandb=disabled",
)
REUSED = "engines: those of the run before, proven to be back at the bare base"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same comparison with shared engines, and without."""
    shared, separate = (tmp_path_factory.mktemp("compare") / name for name in ("shared", "separate"))
    for folder, more in ((shared, ()), (separate, ("compare.share_engines=false",))):
        process = start(*SETTINGS, *more, f"output_dir={folder}")
        output = finish(process)
        assert process.returncode == 0, output
    return shared, separate


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def adapter(folder: Path) -> tuple[str, dict[str, bytes], dict[str, str]]:
    """Settings, tensors and metadata, whose order in the file is random."""
    with safe_open(folder / "adapter" / WEIGHTS_FILE, "numpy") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return (folder / "adapter" / CONFIG_FILE).read_text(), tensors, file.metadata()


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [reproducible(line) for line in lines]


def test_engines_were_shared_on_one_side_only(folders: tuple[Path, Path]) -> None:
    told = [[REUSED in (folder / f"cells/{name}.log").read_text() for name in CELLS] for folder in folders]
    assert told == [[False, True, True], [False, False, False]]


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_the_same_to_the_bit(folders: tuple[Path, Path], name: str) -> None:
    shared, separate = (folder / "cells" / name for folder in folders)
    found = contents(shared / "trajectories")
    assert found
    assert found == contents(separate / "trajectories")
    assert adapter(shared) == adapter(separate)
    assert metrics(shared) == metrics(separate)
    for file in ("evaluations.jsonl", "examples.jsonl", "spectrum.json"):
        assert (shared / file).is_file() == (separate / file).is_file()
        if (shared / file).is_file():
            assert (shared / file).read_bytes() == (separate / file).read_bytes()


def test_each_log_has_the_whole_console_of_its_cell(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        for name in CELLS:
            log = (folder / f"cells/{name}.log").read_text()
            assert log.count("run directory: ") == log.count("report: ") == 1
            assert str(folder / "cells" / name / "report.html") in log
