"""From a run's folder to the records of a comparison, by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rlpost.compare.cells import Ended
from rlpost.compare.design.plan import plan, settings_of
from rlpost.compare.design.types import Status
from rlpost.compare.reading import (
    Read,
    evaluated_on,
    evaluation_of,
    read_cell,
    trained_on,
    unread,
    without_step_accuracy,
)
from rlpost.errors import OutputError
from rlpost.record import retention
from rlpost.record.compute import Compute
from rlpost.record.run_dir import RunDir, read_trajectories
from rlpost.types import Ending, Trajectory
from tests.unit.compare.fake_run import comparison, write_record
from tests.unit.episodes import episode, turn

N = 1000  # parameters
RIGHT, WRONG = turn("CORRECT", 1.0), turn("WRONG_ACTION", -1.0)


def read(
    folder: Path, name: str, points: int = 2, amounts: tuple[float, ...] = (), overrides: tuple[str, ...] = ()
) -> Read:
    cfg = comparison(folder, *overrides)
    (cell,) = [cell for cell in plan(cfg) if cell.name == name]
    settings = settings_of(cfg, cell, folder, amounts)
    write_record(folder / "cells" / name, settings)
    return read_cell(cell, settings, folder, N, points)


def test_an_evaluation_by_hand() -> None:
    found = evaluation_of(
        [
            episode(RIGHT, success=True, index=0),
            episode(WRONG, WRONG, RIGHT, success=True, index=1),
            episode(WRONG, WRONG, index=2),
            episode(index=3, ending=Ending.ENV_ERROR, error="broke"),
        ]
    )
    assert found.instances == ("deal 0", "deal 1", "deal 2", "deal 3")
    assert found.successes == (True, True, False, False)
    assert found.outcomes == ("CORRECT", "CORRECT", "WRONG_ACTION", "ENV_ERROR")
    assert found.solved_at == (1, 3, 0, 0)
    assert found.step_accuracy == pytest.approx(2 / 6)


def test_of_several_steps_the_one_that_took_most_attempts_counts() -> None:
    steps = (RIGHT, WRONG, WRONG, RIGHT, WRONG, RIGHT)
    assert evaluation_of([episode(*steps, success=True)]).solved_at == (3,)


def test_the_reference_has_its_points_at_equal_shares(tmp_path: Path) -> None:
    found = read(tmp_path, "ppo-0").cell
    assert (found.arm, found.seed, found.status, found.run_dir) == ("ppo", 0, Status.DONE, "cells/ppo-0")
    assert [point.share for point in found.points] == [0.5, 1.0]
    each = N * (2 * 400 + 6 * 400)  # an iteration of fake_run
    assert [point.compute for point in found.points] == [
        Compute(4.0 * each, 4 * 800, 4 * 3.0, 4 * 16, 4 * 4),
        Compute(8.0 * each, 8 * 800, 8 * 3.0, 8 * 16, 8 * 4),
    ]
    assert set(found.points[0].evaluations) == {"faces_10", "faces_11_12_13"}
    assert found.points[0].evaluations["faces_10"].instances == ("eval 0", "eval 1", "eval 2")


def test_the_start_has_one_point_and_what_it_cost(tmp_path: Path) -> None:
    found = read(tmp_path, "init-0")
    (point,) = found.cell.points
    assert (point.share, point.compute.flops) == (0.0, 2 * 6 * 64 * N)
    assert found.base is not None, "the bare model was scored too"
    assert set(found.base) == set(point.evaluations)


def test_a_run_that_ended_before_its_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="evaluated 2 times after its start, not 4"):
        read(tmp_path, "ppo-0", points=4)


def test_an_arm_whose_iterations_ran_out_before_its_budget_is_refused(tmp_path: Path) -> None:
    overrides = ("arms=[sft,ppo,grpo]", "compare.points=1", "algo.iterations=1", "compare.match_on=tokens")
    assert read(tmp_path / "spent", "grpo-0", 1, (20 * 800.0,), overrides).cell.status is Status.DONE
    with pytest.raises(OutputError, match=r"1\.6e\+04 tokens where the others spent 4e\+04"):
        read(tmp_path / "short", "grpo-0", 1, (50 * 800.0,), overrides)


def test_an_arm_whose_first_step_costs_far_more_than_a_points_share_is_refused(tmp_path: Path) -> None:
    overrides = ("compare.match_on=tokens",)
    assert read(tmp_path / "near", "sft-0", 1, (0.8 * 64,), overrides).cell.status is Status.DONE
    with pytest.raises(OutputError, match="one step spent more than a point's share"):
        read(tmp_path / "far", "sft-0", 1, (0.5 * 64,), overrides)


def test_what_was_trained_on_comes_from_the_record(tmp_path: Path) -> None:
    assert read(tmp_path, "ppo-0").trained == {f"train {k}" for k in range(8)}
    run_dir = RunDir.create(tmp_path / "run", "x", 0, "")
    run_dir.append_examples(0, ["a", "b"])
    run_dir.append_examples(1, ["c", "a"])
    assert trained_on(run_dir) == {"a", "b", "c"}


def test_what_was_scored_on(tmp_path: Path) -> None:
    assert evaluated_on(read(tmp_path, "ppo-0").cell) == {"eval 0", "eval 1", "eval 2"}


def test_steps_count_only_where_there_are_several(tmp_path: Path) -> None:
    found = read(tmp_path, "ppo-0")
    assert not found.stepwise, "in fake_run the first right answer ends an episode"
    plain = without_step_accuracy(found.cell)
    assert plain.points[0].evaluations["faces_10"].step_accuracy is None
    assert dataclasses.replace(plain, points=()) == dataclasses.replace(found.cell, points=())


def test_cells_without_results_are_named_as_such(tmp_path: Path) -> None:
    cell = plan(comparison(tmp_path))[0]
    assert unread(cell, None).status is Status.MISSING
    ended = Ended(Status.FAILED, "out of memory", 1.0)
    assert (unread(cell, ended).status, unread(cell, ended).error) == (Status.FAILED, "out of memory")


def test_a_record_without_an_index_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    found = read(tmp_path, "ppo-0")
    RunDir(tmp_path / "cells" / "ppo-0").evaluation_index.unlink()
    cfg = comparison(tmp_path)
    (cell,) = [cell for cell in plan(cfg) if cell.name == "ppo-0"]
    assert read_cell(cell, settings_of(cfg, cell, tmp_path, ()), tmp_path, N, 2) == found


def test_an_episode_without_an_instance_cannot_be_paired(tmp_path: Path) -> None:
    read(tmp_path, "init-0")
    run_dir = RunDir(tmp_path / "cells" / "init-0")
    (path,) = run_dir.trajectories.glob("eval-after-faces_10-*.jsonl")
    run_dir.write_trajectories(path.stem, one_without_its_instance(path))
    cfg = comparison(tmp_path)
    init = plan(cfg)[0]
    with pytest.raises(OutputError, match="before it named the instance"):
        read_cell(init, settings_of(cfg, init, tmp_path, ()), tmp_path, N, 2)


def test_nor_can_one_of_what_was_retained(tmp_path: Path) -> None:
    found = read(tmp_path, "ppo-0")
    assert not found.cell.retention
    run_dir = RunDir(tmp_path / "cells" / "ppo-0")
    (path,) = run_dir.trajectories.glob("eval-after-faces_10-*.jsonl")
    run_dir.write_trajectories(retention.episodes_name("after", "absolute"), one_without_its_instance(path))
    run_dir.append_metrics({"stage": "after", f"{retention.ENV}absolute/success": 0.5})
    cfg = comparison(tmp_path)
    (cell,) = [cell for cell in plan(cfg) if cell.name == "ppo-0"]
    with pytest.raises(OutputError, match="before it named the instance"):
        read_cell(cell, settings_of(cfg, cell, tmp_path, ()), tmp_path, N, 2)


def one_without_its_instance(path: Path) -> list[Trajectory]:
    played = read_trajectories(path)
    return [dataclasses.replace(played[0], instance=""), *played[1:]]
