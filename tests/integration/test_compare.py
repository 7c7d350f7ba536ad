"""A comparison as a user runs it: stopped with Ctrl-C in the middle of a cell, and resumed to the same results.

The cell that was stopped is run once more from its beginning, in a copy of the folder: what it leaves must be the same.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlpost.compare import results
from rlpost.compare.design.types import Cell, Comparison, Status
from rlpost.weights.adapters import Adapter
from tests.integration.runs import DEADLINE_S, end, finish, start

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = (
    "experiment=generalpoints_sft_vs_rl",
    "seeds=[3]",
    "compare.points=2",
    "algo.iterations=2",
    "algo.critic_warmup=0",
    "sft.steps=2",
    "sft.batch_size=16",
    "rollout.workers=1",
    "rollout.episodes=32",
    "eval_variants=[faces_10,faces_11_12_13]",
    "eval.episodes=12",
    "learner.threads=1",  # two wait for one another, for long where other tests run beside them
    "tracking.checkpoint_every=1",
    "tracking.wandb=disabled",
)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the comparison did not get there in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, list[psutil.Process]]]:
    """Ctrl-C once the first iteration of ppo-3 has its checkpoint; also what had been running below."""
    folder = tmp_path_factory.mktemp("compare") / "x"
    process = start(*SETTINGS, f"output_dir={folder}")
    try:
        wait_for(folder / "cells/ppo-3/checkpoints/iteration-000001/progress.json", process)
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        output = finish(process)
        assert process.returncode == 130, output
        yield folder, output, below
    finally:
        if process.poll() is None:
            end(process)


@pytest.fixture(scope="module")
def resumed(stopped: tuple[Path, str, list[psutil.Process]]) -> Comparison:
    folder, _, _ = stopped
    first = folder / "cells/ppo-3/trajectories/iteration-000000.jsonl"
    written = first.stat().st_mtime_ns
    process = start(f"resume={folder}")
    output = finish(process)
    assert process.returncode == 0, output
    assert "init-3 was done before" in output
    assert first.stat().st_mtime_ns == written, "the first iteration is not played again"
    return results.read(folder / results.FILE)


def cell(of: Comparison, arm: str) -> Cell:
    (found,) = [cell for cell in of.cells if cell.arm == arm]
    return found


def test_ctrl_c_leaves_no_process_and_no_ended_cell(
    stopped: tuple[Path, str, list[psutil.Process]],
) -> None:
    _, _, below = stopped
    _, alive = psutil.wait_procs(below, timeout=30)
    assert below
    assert not alive


def test_all_arms_are_scored_at_the_same_compute(resumed: Comparison) -> None:
    assert {found.status for found in resumed.cells} == {Status.DONE}
    ppo, sft = cell(resumed, "ppo").points, cell(resumed, "sft").points
    assert [point.share for point in sft] == [0.5, 1.0]
    for mine, its in zip(sft, ppo, strict=True):
        assert mine.compute.flops == pytest.approx(its.compute.flops, rel=0.1)
        assert mine.evaluations.keys() == its.evaluations.keys() == {"faces_10", "faces_11_12_13"}
        for variant, found in mine.evaluations.items():
            assert found.instances == its.evaluations[variant].instances
            assert len(found.instances) == 12
    assert resumed.notes["held out"].startswith("0 of ")


def test_the_arms_start_from_the_same_warm_adapter(
    resumed: Comparison, stopped: tuple[Path, str, list[psutil.Process]]
) -> None:
    """With the learning rates at hand two steps move an adapter by little, and a fresh one would be far away."""
    folder = stopped[0] / "cells"
    warm, sft, ppo = (Adapter.load(folder / name / "adapter") for name in ("init-3", "sft-3", "ppo-3"))
    name = next(name for name in warm.tensors if "lora_A" in name)
    for arm in (sft, ppo):
        moved = (arm.tensors[name] - warm.tensors[name]).norm() / warm.tensors[name].norm()
        assert 0 < moved < 0.5


def test_resumed_equals_run_through(
    resumed: Comparison, stopped: tuple[Path, str, list[psutil.Process]], tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(stopped[0], folder)
    shutil.rmtree(folder / "cells" / "ppo-3")
    (folder / "cells" / "ppo-3.json").unlink()
    process = start(f"resume={folder}")
    output = finish(process)
    assert process.returncode == 0, output
    assert "sft-3 was done before" in output
    assert "ppo-3 begins" in output
    again = results.read(folder / results.FILE)
    for mine, its in zip(cell(again, "ppo").points, cell(resumed, "ppo").points, strict=True):
        assert mine.evaluations == its.evaluations
        assert (mine.compute.flops, mine.compute.tokens) == (its.compute.flops, its.compute.tokens)
    first, second = (Adapter.load(f / "cells" / "ppo-3" / "adapter") for f in (stopped[0], folder))
    assert first.fingerprint == second.fingerprint
