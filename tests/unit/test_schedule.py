"""When training evaluates and ends. FLOPs of the lines by hand: 6 N a trained token."""

from __future__ import annotations

import pytest

from rlpost.config.schema import Config, Measure, Task
from rlpost.tasks.schedule import Schedule, steps_of
from rlpost.weights.models import TINY, parameters

LINE = {"tokens/trained": 10, "seconds/update": 2.0, "episodes": 8.0, "success": 0.5}
COST = 60.0 * parameters(TINY)  # FLOPs of one line


def schedule(last: int = 100, every: int = 0, *amounts: float) -> Schedule:
    cfg = Config()
    cfg.eval.every, cfg.budget.amounts = every, list(amounts)
    return Schedule(cfg, last, TINY)


def played(of: Schedule, most: int = 1000) -> tuple[list[int], int]:
    """After which steps it evaluates, and how many steps it takes."""
    due = []
    for done in range(most):
        if of.due:
            due.append(done)
        if of.over:
            return due, done
        of.add(LINE)
    raise AssertionError("it does not end")


def test_by_count_it_evaluates_between_start_and_end() -> None:
    assert played(schedule(8, 3)) == ([3, 6], 8)
    assert played(schedule(6, 3)) == ([3], 6), "the end's evaluation is the loop's own"
    assert played(schedule(5)) == ([], 5)
    assert played(schedule(0)) == ([], 0)


def test_amounts_are_reached_by_the_step_that_ends_nearest() -> None:
    assert played(schedule(100, 0, 2 * COST, 4 * COST)) == ([2], 4)
    assert played(schedule(100, 0, 2.4 * COST, 4.6 * COST)) == ([2], 5)


def test_the_last_step_ends_it_although_the_budget_is_not_spent() -> None:
    assert played(schedule(3, 0, 2 * COST, 10 * COST)) == ([2], 3)


def test_the_measure_is_the_one_asked_for() -> None:
    for measure, each in (
        (Measure.tokens, 10.0),
        (Measure.device_seconds, 2.0),
        (Measure.rollouts, 8.0),
        (Measure.correct_rollouts, 4.0),
    ):
        cfg = Config()
        cfg.budget.measure, cfg.budget.amounts = measure, [2 * each, 3 * each]
        assert played(Schedule(cfg, 100, TINY)) == ([2], 3)


@pytest.mark.parametrize("before", range(5))
def test_a_resumed_run_stands_where_it_stood(before: int) -> None:
    whole, resumed = (schedule(100, 0, 2 * COST, 4 * COST) for _ in range(2))
    for _ in range(before):
        whole.add(LINE)
    lines = [{"stage": "start"}, *({"step": k, **LINE} for k in range(before))]
    resumed.replay(lines, "step")
    assert (resumed.due, resumed.over) == (whole.due, whole.over)


def test_each_task_takes_the_steps_of_its_own() -> None:
    cfg = Config()
    cfg.algo.iterations, cfg.sft.steps = 7, 5
    found = {}
    for cfg.task in (Task.rl, Task.sft, Task.eval):
        found[cfg.task] = steps_of(cfg)
    assert found == {Task.rl: 7, Task.sft: 5, Task.eval: None}
    cfg.task, cfg.budget.amounts = Task.rl, [1.0]
    assert steps_of(cfg) is None, "a budget ends it, whatever the count"


def test_the_console_is_told_the_number_or_the_share() -> None:
    counted, budgeted = schedule(16), schedule(16, 0, 2 * COST, 4 * COST)
    assert (counted.next, budgeted.next) == ("1/16", "1, 0% of the budget spent")
    counted.add(LINE)
    budgeted.add(LINE)
    assert (counted.next, budgeted.next) == ("2/16", "2, 25% of the budget spent")
