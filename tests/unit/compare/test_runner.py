"""The order of cells, failures, and going on, with runs that are over at once."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rlpost.compare.cells import CellFiles
from rlpost.compare.design.types import Status
from rlpost.compare.display import Display
from rlpost.compare.runner import Runner
from rlpost.config.schema import Config
from rlpost.errors import ConfigError
from rlpost.record.run_dir import RunDir, iteration_name
from rlpost.weights.models import TINY, parameters
from tests.unit.compare.fake_run import FakeRun, comparison, instance
from tests.unit.episodes import episode, turn

Start = Callable[[CellFiles, Config], FakeRun]


class Starter:
    """Starts fake runs, notes which, and lets those fail that are named."""

    def __init__(self, **errors: str) -> None:
        self.started: list[str] = []
        self.settings: dict[str, Config] = {}
        self._errors = {name.replace("_", "-"): error for name, error in errors.items()}

    def __call__(self, files: CellFiles, cfg: Config) -> FakeRun:
        self.started.append(files.name)
        self.settings[files.name] = cfg
        return FakeRun(files, cfg, self._errors.get(files.name))


def run(folder: Path, start: Start, *overrides: str, changes: list[str] | None = None) -> Runner:
    display = Display(Console(file=io.StringIO()), 3, 1)

    def on_change(runner: Runner) -> None:
        if changes is not None:
            changes.append(list(runner.ended)[-1])

    cfg = comparison(folder, *overrides)
    runner = Runner(cfg, folder, parameters(TINY), display, on_change, start)
    runner.run(1)
    return runner


def test_cells_run_in_order_and_are_told_one_by_one(tmp_path: Path) -> None:
    start, changes = Starter(), list[str]()
    runner = run(tmp_path, start, changes=changes)
    assert start.started == changes == ["init-0", "ppo-0", "sft-0"]
    assert {name: ended.status for name, ended in runner.ended.items()} == dict.fromkeys(
        start.started, Status.DONE
    )
    assert set(runner.read) == set(start.started)


def test_the_other_arm_spends_what_the_reference_spent(tmp_path: Path) -> None:
    start = Starter()
    runner = run(tmp_path, start)
    reference, sft = (runner.read[name].cell.points for name in ("ppo-0", "sft-0"))
    assert start.settings["sft-0"].budget.amounts == [point.compute.flops for point in reference]
    step = 6 * 64 * parameters(TINY)
    for mine, its in zip(sft, reference, strict=True):
        assert abs(mine.compute.flops - its.compute.flops) <= step / 2


@pytest.mark.parametrize(
    ("measure", "iteration", "step"),
    [
        ("tokens", 800, 64),
        ("device_seconds", 3.0, 3.0),
        ("rollouts", 16, 4),
        ("correct_rollouts", 4, 4),
    ],
)
def test_arms_are_matched_on_any_measure(tmp_path: Path, measure: str, iteration: float, step: float) -> None:
    """Of eight iterations at two points; a fake iteration and a fake step cost what is written beside the measure."""
    start = Starter()
    runner = run(tmp_path, start, f"compare.match_on={measure}", "arms=[sft,ppo,ppo_shuffled]")
    assert start.started == ["init-0", "ppo-0", "sft-0", "ppo_shuffled-0"]
    for arm in ("sft-0", "ppo_shuffled-0"):
        assert start.settings[arm].budget.amounts == [4 * iteration, 8 * iteration]
    mine, control = (
        [getattr(point.compute, measure) for point in runner.read[name].cell.points]
        for name in ("sft-0", "ppo_shuffled-0")
    )
    assert control == [4 * iteration, 8 * iteration]
    assert all(abs(a - b) <= step / 2 for a, b in zip(mine, control, strict=True))


def test_what_is_done_is_not_run_again(tmp_path: Path) -> None:
    first = run(tmp_path, Starter())
    again = Starter()
    second = run(tmp_path, again)
    assert again.started == []
    assert second.read == first.read
    assert run(tmp_path, again, "seeds=[0,1]").read.keys() == {*first.read, "init-1", "ppo-1", "sft-1"}
    assert again.started == ["init-1", "ppo-1", "sft-1"]


def test_a_failed_cell_is_recorded_and_tried_again(tmp_path: Path) -> None:
    runner = run(tmp_path, Starter(sft_0="out of memory"))
    assert runner.ended["sft-0"].status is Status.FAILED
    assert runner.ended["sft-0"].error == "out of memory"
    assert set(runner.read) == {"init-0", "ppo-0"}
    again = Starter()
    assert set(run(tmp_path, again).read) == {"init-0", "ppo-0", "sft-0"}
    assert again.started == ["sft-0"]


def test_a_done_cell_that_can_no_longer_be_read_is_run_again(tmp_path: Path) -> None:
    first = run(tmp_path, Starter())
    shutil.rmtree(tmp_path / "cells" / "init-0")
    next((tmp_path / "cells" / "sft-0" / "trajectories").glob("eval-after-*")).unlink()
    again = Starter()

    def start(files: CellFiles, cfg: Config) -> FakeRun:
        shutil.rmtree(files.run_dir.path, ignore_errors=True)  # as a process does without a checkpoint
        return again(files, cfg)

    assert run(tmp_path, start).read == first.read
    assert again.started == ["init-0", "sft-0"]


def test_a_failure_leaves_what_was_done_after_it(tmp_path: Path) -> None:
    first = run(tmp_path, Starter())
    shutil.rmtree(tmp_path / "cells" / "init-0")
    runner = run(tmp_path, Starter(init_0="no disk"))
    assert runner.ended["sft-0"].error == "init-0 failed"
    shutil.rmtree(tmp_path / "cells" / "init-0", ignore_errors=True)
    again = Starter()
    assert run(tmp_path, again).read == first.read
    assert again.started == ["init-0"], "ppo-0 and sft-0 were done all the time"


def test_cells_after_a_failed_one_fail_by_name_and_other_seeds_go_on(tmp_path: Path) -> None:
    start = Starter(init_0="no model")
    runner = run(tmp_path, start, "seeds=[0,1]")
    assert runner.ended["ppo-0"].error == "init-0 failed"
    assert runner.ended["sft-0"].error == "init-0 failed"
    assert start.started == ["init-0", "init-1", "ppo-1", "sft-1"]


def test_scored_on_what_was_trained_on_is_a_failure(tmp_path: Path) -> None:
    def start(files: CellFiles, cfg: Config) -> FakeRun:
        made = FakeRun(files, cfg)
        if files.name == "ppo-0":
            leak = [instance(episode(turn()), "eval 1")]
            RunDir(files.run_dir.path).write_trajectories(iteration_name(7), leak)
        return made

    runner = run(tmp_path, start)
    assert "1 evaluation instances were trained on, such as eval 1" in str(runner.ended["ppo-0"].error)
    assert runner.ended["sft-0"].error == "ppo-0 failed"


def test_the_warm_starts_examples_count_as_trained_on(tmp_path: Path) -> None:
    def start(files: CellFiles, cfg: Config) -> FakeRun:
        made = FakeRun(files, cfg)
        if files.name == "init-0":
            RunDir(files.run_dir.path).append_examples(1, ["eval 0"])
        return made

    assert "such as eval 0" in str(run(tmp_path, start).ended["init-0"].error)


def test_cells_that_were_scored_on_other_instances_cannot_be_paired(tmp_path: Path) -> None:
    def start(files: CellFiles, cfg: Config) -> FakeRun:
        if files.name == "sft-0":
            cfg.eval.episodes = 2
        return FakeRun(files, cfg)

    assert "has other instances" in str(run(tmp_path, start).ended["sft-0"].error)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run(tmp_path, Starter())
    with pytest.raises(ConfigError, match=r"init-0.yaml[\s\S]*lora\.rank=4 \(was 32\)"):
        run(tmp_path, Starter(), "lora.rank=4")


def test_an_interruption_stops_what_is_at_work(tmp_path: Path) -> None:
    made: list[FakeRun] = []

    class Endless(FakeRun):
        def ended(self) -> None:
            raise KeyboardInterrupt

    def start(files: CellFiles, cfg: Config) -> FakeRun:
        made.append(Endless(files, cfg))
        return made[-1]

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, start)
    assert [each.stopped for each in made] == [True]
    assert CellFiles(tmp_path, "init-0").read_ended() is None, "it is neither done nor failed"


def test_cells_run_beside_one_another_as_far_as_their_needs_allow(tmp_path: Path) -> None:
    at_work: set[str] = set()
    most: list[set[str]] = []

    class Slow(FakeRun):
        left = 2

        def ended(self):  # type: ignore[no-untyped-def]
            self.left -= 1
            if self.left:
                return None
            at_work.discard(self.files.name)
            return super().ended()

    def start(files: CellFiles, cfg: Config) -> FakeRun:
        at_work.add(files.name)
        most.append(set(at_work))
        return Slow(files, cfg)

    display = Display(Console(file=io.StringIO()), 6, 2)
    cfg = comparison(tmp_path, "seeds=[0,1]")
    runner = Runner(cfg, tmp_path, parameters(TINY), display, lambda _: None, start)
    runner.run(2)
    assert len(runner.read) == 6
    assert {"init-0", "init-1"} in most
    assert max(map(len, most)) == 2
