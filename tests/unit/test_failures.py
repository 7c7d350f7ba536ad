"""Failed episodes are told, with count, share and cause, wherever a run speaks; where all failed, an error says why."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rlpost.config.schema import Config
from rlpost.errors import RolloutError
from rlpost.pages.console import Progress
from rlpost.pages.run_page import write_report
from rlpost.record import failures
from rlpost.record.metrics import Clock, evaluation, rollout_metrics
from rlpost.record.run_dir import RunDir
from rlpost.record.summary import unplayed
from rlpost.rollout.rollouts import rollouts_of
from rlpost.tasks.evaluate import evaluate
from rlpost.tasks.rl import _iterate
from rlpost.tasks.stall import Stall
from rlpost.tasks.training_state import TrainingState
from rlpost.types import Ending, Trajectory
from tests.unit.episodes import episode, turn

RAISED = "KeyError: 'answer'\n in [b]score[/b]"
ONE_LINE = "KeyError: 'answer' in [b]score[/b] (generalpoints, variant faces_10, instance deal 2, episode 2)"


def played(good: int = 2, broken: int = 1, unfit: int = 1) -> list[Trajectory]:
    """Good ones first; the broken ones failed on different things."""
    return [
        *(episode(turn(reward=1.0), success=True, index=i) for i in range(good)),
        *(episode(ending=Ending.ENV_ERROR, error=RAISED, index=good + i) for i in range(broken)),
        *(episode(ending=Ending.CONTEXT_FULL, index=good + broken + i) for i in range(unfit)),
    ]


def test_counts_and_causes_by_hand() -> None:
    batch = [*played(), episode(turn(), ending=Ending.ENV_TIMEOUT, error="slow", index=9)]
    assert failures.counts(batch) == {"broken": 2, "unfit": 1}
    assert failures.notes(batch) == [
        f"2 of 5 episodes (40%) broken by the environment; the first: {ONE_LINE}",
        "1 of 5 episodes (20%) unfit: the prompt does not fit rollout.max_model_len; the first: the prompt is too"
        " long (generalpoints, variant faces_10, instance deal 3, episode 3)",
    ]
    assert failures.notes(played(4, 0, 0)) == []


def test_an_episode_that_outgrew_the_context_after_an_answer_is_not_unfit() -> None:
    assert not failures.is_unfit(episode(turn(), ending=Ending.CONTEXT_FULL))


def test_a_cause_is_one_line_of_bounded_length_even_before_an_instance_is_named() -> None:
    silent = replace(episode(ending=Ending.ENV_ERROR, error="x\n" * 9999), instance="")
    cause = failures.first_cause([silent])
    assert cause is not None
    assert "at its reset" in cause
    assert "\n" not in cause
    assert len(cause) < 500


@pytest.mark.parametrize("batch", [played(0, 3, 0), played(0, 0, 3), played(0, 2, 1)])
def test_all_failed_is_an_error_that_names_the_cause(batch: list[Trajectory]) -> None:
    with pytest.raises(RolloutError, match="iteration 1: not one episode was played") as refused:
        failures.refuse_all(batch, "iteration 1")
    for note in failures.notes(batch):
        assert note in str(refused.value)
    failures.refuse_all(played(1, 2, 3), "with one that was played there is something to learn from")


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_iterations_line_counts_them_and_the_next_says_why() -> None:
    shown, batch = console(), played()
    Progress(shown, 3).iteration(1, rollout_metrics(batch), failures.notes(batch))
    lines = printed(shown).splitlines()
    assert "broken 1/4  unfit 1/4" in lines[0]
    assert lines[1].strip() == f"note: 1 of 4 episodes (25%) broken by the environment; the first: {ONE_LINE}"


class Pool:
    def __init__(self, batch: list[Trajectory]) -> None:
        self.batch = batch

    def collect(self, specs: Any, sampling: Any) -> list[Trajectory]:
        return self.batch


def evaluated(
    batch: list[Trajectory], folder: Path, shown: Console, progress: Progress | None = None
) -> dict[str, Any]:
    cfg, run_dir = Config(eval_variants=["faces_10"]), RunDir.create(folder / "run", "name", 0, "")
    return evaluate(cfg, Pool(batch), run_dir, progress or Progress(shown, None), "before")  # type: ignore[arg-type]


def test_after_an_evaluation_of_graded_answers_lines_lead_with_the_mean_reward(tmp_path: Path) -> None:
    for number, reward in enumerate((0.0, 0.3)):
        shown = console()
        progress = Progress(shown, None)
        evaluated([episode(turn("PARTIAL", reward))], tmp_path / str(number), shown, progress)
        progress.iteration(1, {})
        line = printed(shown).splitlines()[-1].split()
        assert line[1] == ("reward" if reward else "success")


def test_an_evaluation_tells_its_failures(tmp_path: Path) -> None:
    shown = console()
    entry = evaluated(played(), tmp_path, shown)["faces_10"]["sampled"]
    assert (entry["env_errors"], entry["unfit"], entry["first_failure"]) == (1, 1, ONE_LINE)
    assert f"broken by the environment; the first: {ONE_LINE}" in printed(shown)
    assert unplayed(entry) == [
        "1 outgrew the context (25%)",
        "1 of those by the prompt alone (25%)",
        "1 broken by the environment (25%)",
        f"the first: {ONE_LINE}",
    ]


def test_an_evaluation_of_broken_episodes_alone_is_no_zero(tmp_path: Path) -> None:
    with pytest.raises(RolloutError, match=r"evaluation \(before\): faces_10") as refused:
        evaluated(played(0, 4, 0), tmp_path, console())
    assert ONE_LINE.partition(" (")[0] in str(refused.value)
    assert list((tmp_path / "run" / "trajectories").iterdir())  # they can be looked at


def test_the_page_tells_those_of_training_and_of_evaluations(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "run", "name", 0, "train_variant: faces_10\n")
    for iteration, batch in enumerate([played(4, 0, 0), played()]):
        line = {
            "iteration": iteration,
            **rollout_metrics(batch),
            "first_failure": failures.first_cause(batch),
        }
        run_dir.append_metrics(line)
    entry = evaluation(played())
    run_dir.write_summary(
        {
            "eval": {"before": {"faces_10": {**entry, "sampled": entry}}},
            "variants": {},
            "train_variant": "faces_10",
            "iterations": 2,
            "seconds": 1.0,
        }
    )
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "1 of 8 episodes (12%) broken by the environment; 1 of 8 episodes (12%) unfit" in page
    assert "the first, in iteration 2: KeyError: &#39;answer&#39; in [b]score[/b] (generalpoints" in page
    assert "1 broken by the environment (25%)" in page


def test_a_run_whose_episodes_all_broke_ends_before_the_update(tmp_path: Path) -> None:
    cfg, run_dir = Config(), RunDir.create(tmp_path / "run", "name", 0, "")
    session: Any = SimpleNamespace(cfg=cfg, clock=Clock(), run_dir=run_dir, pool=Pool(played(0, 8, 0)))
    with pytest.raises(RolloutError, match=r"iteration 1 \(its episodes: .*iteration-000000.jsonl\)"):
        _iterate(session, TrainingState(), rollouts_of(cfg, session.pool), Stall(cfg.algo), None, None)
