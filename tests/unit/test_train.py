"""The order in which an iteration of RL is recorded, so that whatever ends the run, the record fits its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rlpost.compare.reading import trained_on
from rlpost.config.compose import compose, to_yaml
from rlpost.config.schema import Config, Measure, RewardControl, RolloutPolicy
from rlpost.errors import CheckpointError, LearnerError
from rlpost.record.metrics import Clock
from rlpost.record.run_dir import RunDir, Sitting, read_trajectories
from rlpost.record.shares import Share, share_of
from rlpost.rollout.pool import PoolSwapReport
from rlpost.rollout.reward_control import shuffled
from rlpost.tasks import rl, training_state
from rlpost.tasks.schedule import Schedule
from rlpost.tasks.session import Session, publish
from rlpost.tasks.training_state import TrainingState
from rlpost.types import Ending, EpisodeSpec, Example, Trajectory
from rlpost.weights.models import TINY
from tests.unit.episodes import episode, turn
from tests.unit.test_sft import CharacterChat

SECOND = 10**9  # what saving takes, and nothing else does


class Pool:
    restarts, workers = 0, 1

    def grow(self) -> None:
        pass

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Any) -> list[Trajectory]:
        return [episode(turn(), index=i) for i in range(len(specs))]


class Learner:
    """Notes how many lines the record has when it is saved; breaks in iteration `breaks`."""

    def __init__(self, run_dir: RunDir) -> None:
        self.run_dir, self.breaks, self.saved = run_dir, -1, list[int]()
        self.now_ns = 0
        self.examples = list[int]()  # how many it is given in each iteration

    def update_rl(
        self, trajectories: Sequence[Trajectory], iteration: int, examples: Sequence[Example] = ()
    ) -> dict[str, float]:
        self.examples.append(len(examples))
        if iteration == self.breaks:
            raise LearnerError("the gradient is not finite")
        return {"seconds_logprobs": 0.0, "seconds_update": 0.0}

    def save(self, folder: Path) -> list[Share]:
        self.saved.append(len(self.run_dir.read_metrics()))
        (folder / "weights").touch()
        self.now_ns += SECOND
        return [share_of(folder, 0)]

    def load(self, folder: Path) -> None:
        assert (folder / "weights").is_file()
        self.now_ns += 7 * SECOND


def silent(*_: object, **__: object) -> None:
    pass


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    cfg = Config()
    cfg.rollout.episodes, cfg.tracking.checkpoint_every = 4, 2
    run_dir = RunDir.create(tmp_path / "run", "name", 0, to_yaml(cfg))
    learner = Learner(run_dir)
    report = SimpleNamespace(metrics=dict)
    monkeypatch.setattr(training_state, "swap", lambda session, state: report)
    monkeypatch.setattr("rlpost.tasks.spectrum.on_the_way", lambda session: {})
    monkeypatch.setattr("rlpost.tasks.memory.look", lambda session: {})
    monkeypatch.setattr("rlpost.tasks.spectrum.at_the_end", silent)
    told, tracker = SimpleNamespace(stage=silent, iteration=silent), SimpleNamespace(log=silent)
    parts: dict[str, Any] = {"chat": None, "console": None, "pool": Pool(), "tracker": tracker}
    return Session(
        cfg=cfg,
        model_folder=TINY,
        run_dir=run_dir,
        progress=told,  # type: ignore[arg-type]
        clock=Clock(lambda: learner.now_ns),
        started=0.0,
        learner_group=learner,  # type: ignore[arg-type]
        **parts,
    )


def trained(session: Session, last: int) -> TrainingState:
    state = TrainingState()
    rl._train(session, Schedule(session.cfg, last, TINY), state)
    return state


def test_the_episodes_that_break_an_update_are_on_disk_and_a_resumed_run_plays_them_again(
    session: Session,
) -> None:
    session.learner.breaks = 2  # type: ignore[attr-defined]
    with pytest.raises(LearnerError):
        trained(session, 3)
    breaking = session.run_dir.trajectories_file("iteration-000002")
    assert breaking.read_bytes().count(b"\n") == 4
    assert training_state.resume(session, "iteration", live=False).steps == 2
    assert not breaking.exists()


def test_a_checkpoint_comes_after_the_line_of_its_last_iteration(session: Session) -> None:
    trained(session, 5)
    assert session.learner.saved == [2, 4, 5]  # type: ignore[attr-defined]


def test_a_run_that_its_budget_ends_has_a_checkpoint_of_its_end(session: Session) -> None:
    session.cfg.budget.measure, session.cfg.budget.amounts = Measure.tokens, [1.0]
    assert trained(session, 100).steps == 1
    assert session.learner.saved == [1]  # type: ignore[attr-defined]


def test_a_checkpoints_time_is_recording_of_the_line_that_follows(session: Session) -> None:
    trained(session, 3)
    session.book("after")
    seconds = [line["seconds/record"] for line in session.run_dir.read_metrics()]
    assert seconds == [0.0, 0.0, 1.0, 1.0]


def test_a_checkpoint_of_another_version_is_refused_by_what_differs(session: Session) -> None:
    trained(session, 2)
    [newest, *_] = sorted(session.run_dir.checkpoints.iterdir(), reverse=True)
    mark = newest / "progress.json"
    mark.write_text(mark.read_text().replace('"canary_gaps"', '"gaps"'))
    with pytest.raises(CheckpointError, match=r"another version of rlpost .*'gaps'.*'canary_gaps'"):
        training_state.resume(session, "iteration", live=False)


@pytest.mark.parametrize("broken", ["load", "sync_weights", "lines"])
def test_a_resume_that_fails_leaves_a_finished_runs_results(
    session: Session, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(session, 2)
    session.run_dir.write_summary({"iterations": 2})
    evaluation = session.run_dir.write_trajectories("eval-after-faces_10-sampled", [episode(turn())])
    session.run_dir.report.write_text("looked at")
    if broken == "lines":
        session.run_dir.metrics.write_bytes(session.run_dir.metrics.read_bytes().splitlines(keepends=True)[0])
    before = {path: path.read_bytes() for path in session.run_dir.path.rglob("*") if path.is_file()}

    def fails(*_: object) -> None:
        raise LearnerError("it does not load")

    if broken == "load":
        session.learner.load = fails  # type: ignore[method-assign]
    if broken == "sync_weights":
        monkeypatch.setattr(training_state, "sync_weights", fails)
    with pytest.raises((LearnerError, CheckpointError)):
        training_state.resume(session, "iteration", live=True)
    assert {path: path.read_bytes() for path in session.run_dir.path.rglob("*") if path.is_file()} == before
    assert evaluation in before


def test_loading_a_checkpoint_is_a_part_of_the_start(session: Session) -> None:
    trained(session, 2)
    session.clock.lap()
    training_state.resume(session, "iteration", live=False)
    lap = session.clock.lap()
    assert (lap["seconds/start"], lap["seconds/other"]) == (7.0, 0.0)


def test_what_a_resume_changes_is_kept_for_the_next_one_and_told(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.console = Console(width=200)
    session.cfg.output_dir = session.cfg.resume = None
    trained(session, 2)
    training_state.resume(session, "iteration", live=False)
    assert capsys.readouterr().out == "", "nothing was changed"
    folder = session.run_dir.path
    session.cfg = compose([f"resume={folder}", "algo.iterations=100", "tracking.wandb=disabled"])
    training_state.resume(session, "iteration", live=False)
    told = capsys.readouterr().out
    assert "algo.iterations=100 (was 40)" in told
    assert 'tracking.wandb="disabled" (was "auto")' in told
    assert "resume" not in told.partition(": ")[2]
    again = compose([f"resume={folder}"])
    assert (again.algo.iterations, again.tracking.wandb) == (100, "disabled")
    assert session.run_dir.read_config().resume is None


def test_time_and_replaced_workers_add_up_over_sittings(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr("rlpost.tasks.session.write_report", lambda run_dir, own_code: run_dir.report)
    monkeypatch.setattr("rlpost.tasks.session.results_table", lambda console, summary: shown.append(summary))
    monkeypatch.setattr(
        "rlpost.tasks.session.time", SimpleNamespace(monotonic=lambda: session.learner.now_ns / SECOND)
    )  # type: ignore[attr-defined]
    session.console, session.progress.close = Console(), silent  # type: ignore[method-assign]
    session.pool.restarts = 2  # type: ignore[misc]
    with session.sitting():
        trained(session, 2)  # a checkpoint, which takes a second
        session.learner.now_ns += 3 * SECOND  # type: ignore[attr-defined]
    assert session.run_dir.read_sittings() == (Sitting(4.0, 2),)
    resumed = replace(session, started=4.0, earlier=session.run_dir.read_sittings())
    session.pool.restarts = 1  # type: ignore[misc]
    with resumed.sitting():
        trained(resumed, 2)
        publish(resumed, {}, {}, 4, [], [], [])
    assert (shown[0]["seconds"], shown[0]["workers_replaced"], shown[0]["sittings"]) == (5.0, 3, 2)
    assert resumed.run_dir.read_sittings() == (Sitting(4.0, 2), Sitting(1.0, 1))


def test_a_sitting_that_is_stopped_counts(session: Session) -> None:
    with pytest.raises(KeyboardInterrupt), session.sitting():
        raise KeyboardInterrupt
    assert len(session.run_dir.read_sittings()) == 1


def test_a_killed_sitting_counts_up_to_its_last_checkpoint(session: Session) -> None:
    trained(session, 3)
    assert len(session.run_dir.read_sittings()) == 1


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.console = Console(width=200)
    trained(session, 4)
    (session.run_dir.checkpoints / "iteration-000004" / "weights").write_text("bytes that nobody wrote")
    assert training_state.resume(session, "iteration", live=False).steps == 2
    assert (
        "iteration-000004 is damaged; iteration-000002 is taken instead"
        in capsys.readouterr().out.replace("\n", "")
    )
    assert len(session.run_dir.read_metrics()) == 2


def test_a_record_without_the_line_of_a_step_is_refused(session: Session) -> None:
    trained(session, 2)
    first, _ = session.run_dir.metrics.read_bytes().splitlines(keepends=True)
    session.run_dir.metrics.write_bytes(first)
    with pytest.raises(CheckpointError, match=r"the lines of 1 steps \(iteration\).* has taken 2\n"):
        training_state.resume(session, "iteration", live=False)


def test_gaps_of_sampled_tokens_and_of_canaries_have_two_names(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An iteration measures both; a supervised run's swaps only the canary's, and its other mean is null."""
    monkeypatch.undo()  # the real swap
    monkeypatch.setattr("rlpost.tasks.memory.look", lambda session: {})
    monkeypatch.setattr("rlpost.tasks.spectrum.on_the_way", lambda session: {})
    report = PoolSwapReport(1, modules_bound=4, canary_gap=0.25, rounding_loss=0.0, seconds=0.1)
    monkeypatch.setattr(training_state, "sync_weights", lambda session, version: report)
    update = session.learner.update_rl
    monkeypatch.setattr(session.learner, "update_rl", lambda *a: {**update(*a), "logprob_gap": 0.5})
    rl, sft = trained(session, 2), TrainingState()
    training_state.swap(session, sft)
    assert (rl.logprob_gaps, rl.canary_gaps) == ([0.5, 0.5], [0.25, 0.25])
    assert (sft.logprob_gaps, sft.canary_gaps) == ([], [0.25])
    session.console, session.progress.close = Console(), silent  # type: ignore[method-assign]
    session.pool.restarts = 0
    monkeypatch.setattr("rlpost.tasks.session.write_report", lambda run_dir, own_code: run_dir.report)
    for state, expected in ((rl, (0.5, 0.25)), (sft, (None, 0.25))):
        publish(session, {}, {}, 2, state.swap_seconds, state.logprob_gaps, state.canary_gaps)
        written = session.run_dir.read_summary()
        assert written is not None
        assert (written["logprob_gap_mean"], written["canary_gap_mean"]) == expected


def test_a_run_whose_rewards_never_differ_is_warned_once(session: Session) -> None:
    """The pool's episodes all earn -1."""
    told = list[str]()
    session.progress.iteration = lambda done, numbers, notes: told.extend(notes)  # type: ignore[method-assign]
    trained(session, 6)
    assert [note.partition(":")[0] for note in told] == ["this run cannot learn as it is"]


def test_evaluations_are_drawn_over_the_iterations_that_were_finished_before(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second iteration and the end; a resumed run goes on after those that stand."""
    sent: list[tuple[str, int]] = []

    def log_evaluation(evaluation: object, over: str, finished: int) -> None:
        sent.append((over, finished))

    def evaluate(cfg: Config, pool: object, run_dir: RunDir, progress: object, stage: str) -> dict[str, Any]:
        for variant in cfg.eval_variants:
            for decoding in ("greedy", "sampled"):
                run_dir.write_evaluation(stage, variant, decoding, [episode(turn(), variant=variant)])
        return {}

    monkeypatch.setattr("rlpost.tasks.evaluate.evaluate", evaluate)
    monkeypatch.setattr(training_state, "publish", silent)
    session.tracker.log_evaluation = log_evaluation  # type: ignore[method-assign]
    session.console, session.cfg.eval.every = Console(), 2
    training_state.finish(session, trained(session, 5))
    assert sent == [("eval/iterations", finished) for finished in (2, 4, 5)]
    sent.clear()
    schedule = Schedule(session.cfg, 7, TINY)
    state = training_state.resume(session, "iteration", live=False)
    schedule.replay(session.run_dir.read_metrics(), "iteration")
    rl._train(session, schedule, state)
    training_state.finish(session, state)
    assert sent == [("eval/iterations", finished) for finished in (6, 7)]


class TestRewards:
    """The pool's episodes all earn -1; the function pays for their number."""

    @pytest.fixture
    def judged(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> list[list[Trajectory]]:
        """What the learner is given, an iteration after another."""
        given: list[list[Trajectory]] = []
        learner = session.learner
        update = learner.update_rl

        def update_rl(
            trajectories: list[Trajectory], iteration: int, examples: Sequence[Example]
        ) -> dict[str, float]:
            given.append(list(trajectories))
            return update(trajectories, iteration, examples)

        def rewards(played: list[Trajectory]) -> list[Trajectory]:
            learner.now_ns += 3 * SECOND  # type: ignore[attr-defined]
            return [replace(t, turns=(replace(t.turns[0], reward=float(t.episode)),)) for t in played]

        monkeypatch.setattr(learner, "update_rl", update_rl)
        monkeypatch.setattr("rlpost.rollout.reward_function.load", lambda reference: rewards)
        session.cfg.algo.reward_function = "judge:rewards"
        return given

    def test_they_are_learnt_from_recorded_and_timed(
        self, session: Session, judged: list[list[Trajectory]]
    ) -> None:
        trained(session, 2)
        assert [[t.total_reward for t in batch] for batch in judged] == [[0.0, 1.0, 2.0, 3.0]] * 2
        lines = session.run_dir.read_metrics()
        assert [line["seconds/rewards"] for line in lines] == [3.0, 3.0]
        assert [(line["reward"], line["env_reward"]) for line in lines] == [(1.5, -1.0)] * 2
        written = read_trajectories(session.run_dir.trajectories_file("iteration-000001"))
        assert written == judged[1]
        assert {turn.env_reward for t in written for turn in t.turns} == {-1.0}

    def test_a_control_permutes_them(self, session: Session, judged: list[list[Trajectory]]) -> None:
        session.cfg.algo.reward_control = RewardControl.shuffled
        trained(session, 1)
        totals = [t.total_reward for t in judged[0]]
        assert sorted(totals) == [0.0, 1.0, 2.0, 3.0]
        assert totals == [t.total_reward for t in shuffled(paid(judged[0], range(4)), session.cfg.seed)]
        (line,) = session.run_dir.read_metrics()
        assert (line["reward"], line["env_reward"]) == (1.5, -1.0)

    def test_dynamic_sampling_judges_by_them(self, session: Session, judged: list[list[Trajectory]]) -> None:
        session.cfg.algo.dynamic_sampling, session.cfg.rollout.group_size = True, 2
        session.pool = GroupPool()  # type: ignore[assignment]
        trained(session, 1)
        (line,) = session.run_dir.read_metrics()
        assert (line["refill/rounds"], line["seconds/rewards"]) == (0, 3.0)

    def test_without_a_function_there_is_no_phase_for_it(self, session: Session) -> None:
        trained(session, 1)
        (line,) = session.run_dir.read_metrics()
        assert not {"seconds/rewards", "env_reward"} & line.keys()


def paid(played: Sequence[Trajectory], totals: Iterable[float]) -> list[Trajectory]:
    """The episodes, of one turn each, with these rewards."""
    pairs = zip(played, totals, strict=True)
    return [replace(t, turns=(replace(t.turns[0], reward=float(total)),)) for t, total in pairs]


class GroupPool(Pool):
    def collect(self, specs: Sequence[EpisodeSpec], sampling: Any) -> list[Trajectory]:
        return [replace(episode(turn(), index=spec.episode), group=spec.group) for spec in specs]


def test_the_line_has_the_oldest_policy_of_the_iteration(session: Session) -> None:
    class Stale(Pool):
        def collect(self, specs: Sequence[EpisodeSpec], sampling: Any) -> list[Trajectory]:
            turns = [replace(turn(), policy_version=version) for version in (7, 5, 6)]
            broken = episode(ending=Ending.ENV_ERROR, error="no")
            return [broken, episode(turns[0]), episode(*turns[:2]), episode(turns[2])]

    session.pool = Stale()  # type: ignore[assignment]
    trained(session, 1)
    assert [line["adapter_version"] for line in session.run_dir.read_metrics()] == [5]


def test_workers_may_join_before_each_iteration_and_not_within_one(session: Session) -> None:
    did: list[str] = []

    class Growing(Pool):
        def grow(self) -> None:
            did.append("grow")

        def collect(self, specs: Sequence[EpisodeSpec], sampling: Any) -> list[Trajectory]:
            did.append("play")
            return super().collect(specs, sampling)

    session.pool = Growing()  # type: ignore[assignment]
    trained(session, 2)
    assert did == ["grow", "play"] * 2


class TestExpertAnswers:
    @pytest.fixture
    def mixed(self, session: Session) -> Session:
        session.chat = CharacterChat()  # type: ignore[assignment]
        session.cfg.algo.expert_coef, session.cfg.algo.expert_examples = 0.1, 3
        session.cfg.algo.critic_warmup, session.cfg.sft.steps = 1, 2
        session.run_dir.config.write_text(to_yaml(session.cfg))
        return session

    def test_they_are_drawn_recorded_and_handed_over_once_the_policy_learns(self, mixed: Session) -> None:
        trained(mixed, 3)
        assert mixed.learner.examples == [0, 3, 3]  # type: ignore[attr-defined]
        lines = mixed.run_dir.read_examples()
        assert [line["iteration"] for line in lines] == [1, 2]
        assert all(len(line["instances"]) == 3 for line in lines)
        assert {i for line in lines for i in line["instances"]} <= trained_on(mixed.run_dir)
        assert "seconds/data" in mixed.run_dir.read_metrics()[-1]

    def test_a_resumed_run_draws_those_of_its_iterations_again(self, mixed: Session) -> None:
        trained(mixed, 3)
        before = mixed.run_dir.read_examples()
        state = training_state.resume(mixed, "iteration", live=False)
        assert mixed.run_dir.read_examples() == [line for line in before if line["iteration"] < state.steps]
        rl._train(mixed, Schedule(mixed.cfg, 4, TINY), state)
        assert mixed.run_dir.read_examples()[:2] == before

    def test_without_a_weight_there_are_none(self, session: Session) -> None:
        trained(session, 1)
        assert session.learner.examples == [0]  # type: ignore[attr-defined]
        assert session.run_dir.read_examples() == []


def test_streaming_is_told_what_the_loop_does(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect, measure before the update, swap inside `swapping`, settle before an evaluation."""
    told: list[Any] = []

    class Rollouts:
        def collect(self, specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
            told.append(("collect", specs[0].iteration))
            return Pool().collect(specs, None)

        def metrics(self, batch: Sequence[Trajectory], live: int) -> dict[str, float]:
            told.append(("metrics", len(batch), live))
            return {"staleness/max": 1.0}

        @contextmanager
        def swapping(self, iteration: int) -> Iterator[None]:
            told.append(("swapping", iteration))
            yield
            told.append("swapped")

        def settle(self) -> None:
            told.append("settle")

    def swap(*_: object) -> SimpleNamespace:
        told.append("swap")
        return SimpleNamespace(metrics=dict)

    monkeypatch.setattr(rl, "rollouts_of", lambda cfg, pool: Rollouts())
    monkeypatch.setattr(rl, "evaluate_stage_once", lambda *a: told.append("evaluate"))
    monkeypatch.setattr(training_state, "swap", swap)
    update = session.learner.update_rl
    monkeypatch.setattr(session.learner, "update_rl", lambda *a: {**update(*a), "logprob_gap": 0.5})
    session.cfg.eval.every = 1
    state = trained(session, 2)
    assert told[:5] == [("collect", 0), ("metrics", 4, 0), ("swapping", 1), "swap", "swapped"]
    assert told[5:9] == ["settle", "evaluate", ("collect", 1), ("metrics", 4, 0)]
    assert state.logprob_gaps == [0.5], "the gap of a stale batch is not one of engine and learner"
    assert [line["staleness/max"] for line in session.run_dir.read_metrics() if "iteration" in line] == [1, 1]


class TestTurnsOnAGpu:
    """rollout.sleep: the engines sleep while the learner works, and are awake for everything else."""

    @pytest.fixture
    def asked(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What pool and learner are asked, in order."""
        asked: list[str] = []

        class Turns(Pool):
            def collect(self, specs: Sequence[EpisodeSpec], sampling: Any) -> list[Trajectory]:
                asked.append("collect")
                return super().collect(specs, sampling)

            def sleep(self) -> None:
                asked.append("sleep")

            def wake(self) -> None:
                asked.append("wake")

        def swap(*_: object) -> SimpleNamespace:
            asked.append("swap")
            return SimpleNamespace(metrics=dict)

        def update(*given: Any) -> dict[str, float]:
            asked.append("update")
            return taken(*given)

        taken = session.learner.update_rl
        monkeypatch.setattr(session.learner, "update_rl", update)
        monkeypatch.setattr(training_state, "swap", swap)
        session.pool = Turns()  # type: ignore[assignment]
        return asked

    def test_they_sleep_for_the_update_and_wake_before_the_swap(
        self, session: Session, asked: list[str]
    ) -> None:
        session.cfg.rollout.sleep = True
        trained(session, 2)
        assert asked == ["collect", "sleep", "update", "wake", "swap"] * 2
        lines = [line for line in session.run_dir.read_metrics() if "iteration" in line]
        assert all({"seconds/sleep", "seconds/wake"} <= line.keys() for line in lines)

    def test_they_wake_though_no_swap_follows(
        self, session: Session, asked: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        session.cfg.rollout.sleep, session.cfg.rollout.policy = True, RolloutPolicy.start
        trained(session, 1)
        assert asked == ["collect", "sleep", "update", "wake"]

    def test_without_the_setting_nobody_is_asked(self, session: Session, asked: list[str]) -> None:
        trained(session, 1)
        assert asked == ["collect", "update", "swap"]
        [line] = [line for line in session.run_dir.read_metrics() if "iteration" in line]
        assert not {"seconds/sleep", "seconds/wake"} & line.keys()
