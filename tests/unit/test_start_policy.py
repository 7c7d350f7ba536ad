"""`rollout.policy=start`: the start plays all of training's episodes, the current policy all evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from rlpost.cluster.memory import Memory
from rlpost.config.compose import to_yaml
from rlpost.config.schema import Config, RolloutPolicy
from rlpost.errors import AdapterError, CheckpointError
from rlpost.record.metrics import Clock
from rlpost.record.run_dir import RunDir
from rlpost.record.shares import Share, share_of
from rlpost.rollout.pool import PoolSwapReport
from rlpost.rollout.specs import training_specs
from rlpost.tasks import rl, start_policy, training_state
from rlpost.tasks.schedule import Schedule
from rlpost.tasks.session import Session
from rlpost.tasks.training_state import TrainingState
from rlpost.types import Canary, EpisodeSpec, Example, Trajectory
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from tests.unit.episodes import episode, turn

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def silent(*_: object, **__: object) -> None:
    pass


def adapter(value: float, version: int) -> Adapter:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    tensors = {f"{MODULE}.lora_{x}.weight": torch.full((2, 2), value) for x in "AB"}
    return Adapter.create(config, tensors, version)


class Learner:
    """Its policy is one number, the count of its updates."""

    updates = 0

    def update_rl(
        self, trajectories: Sequence[Trajectory], iteration: int, examples: Sequence[Example] = ()
    ) -> dict[str, float]:
        self.updates += 1
        gap = {"logprob_gap": 0.1 * self.updates}
        return {"seconds_logprobs": 0.0, "seconds_update": 0.0, **gap}

    def set_reference(self) -> None:
        pass

    def export(self, version: int) -> tuple[Adapter, Canary]:
        return adapter(float(self.updates), version), Canary((1, 2), (-1.0 - self.updates,))

    def save(self, folder: Path) -> list[Share]:
        (folder / "weights").write_text(str(self.updates))
        return [share_of(folder, 0)]

    def load(self, folder: Path) -> None:
        self.updates = int((folder / "weights").read_text())

    def memory(self) -> list[Memory]:
        return []


class Pool:
    """Notes which policy played which instances; refuses a canary that is not the adapter's."""

    restarts, workers = 0, 1

    def __init__(self) -> None:
        self.live = self.version = -1
        self.played: list[tuple[int, tuple[int, ...]]] = []

    def swap(self, adapter: Adapter, canary: Canary) -> PoolSwapReport:
        self.live, self.version = int(next(iter(adapter.tensors.values()))[0, 0]), adapter.version
        assert canary.logprobs == (-1.0 - self.live,)
        return PoolSwapReport(adapter.version, 1, 0.0, 0.0, 0.1)

    def grow(self) -> None:
        pass

    def memory(self) -> dict[int, Memory]:
        return {}

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Any) -> list[Trajectory]:
        self.played.append((self.live, tuple(spec.env_seed for spec in specs)))
        return [
            replace(episode(replace(turn(), policy_version=self.version), index=i)) for i in range(len(specs))
        ]


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    cfg = Config()
    cfg.rollout.policy, cfg.rollout.episodes, cfg.tracking.checkpoint_every = RolloutPolicy.start, 4, 2
    cfg.sft.steps, cfg.eval.start, cfg.eval.every = 0, False, 2
    run_dir = RunDir.create(tmp_path / "run", "name", 0, to_yaml(cfg))
    monkeypatch.setattr("rlpost.tasks.spectrum.on_the_way", lambda session: {})
    monkeypatch.setattr("rlpost.tasks.memory.look", lambda session: {})
    told, tracker = SimpleNamespace(stage=silent, iteration=silent), SimpleNamespace(log=silent)
    parts: dict[str, Any] = {"chat": None, "pool": Pool(), "tracker": tracker, "progress": told}
    return Session(
        cfg=cfg,
        console=Console(),
        model_folder=TINY,
        run_dir=run_dir,
        clock=Clock(lambda: 0),
        started=0.0,
        learner_group=Learner(),  # type: ignore[arg-type]
        **parts,
    )


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The stages that were evaluated, with the policy in the engines."""
    seen: list[tuple[str, int]] = []
    note = lambda session, stage, finished: seen.append((stage, session.pool.live))  # noqa: E731
    monkeypatch.setattr(rl, "evaluate_stage_once", note)
    return seen


def trained(session: Session, state: TrainingState, last: int) -> TrainingState:
    schedule = Schedule(session.cfg, last, TINY)
    schedule.replay(session.run_dir.read_metrics(), "iteration")
    rl._train(session, schedule, state)
    return state


def test_the_start_plays_every_iteration_and_the_current_policy_the_evaluations(
    session: Session, evaluated: list[tuple[str, int]]
) -> None:
    trained(session, rl._begin(session), 5)
    assert [live for live, _ in session.pool.played] == [0] * 5  # type: ignore[attr-defined]
    assert evaluated == [("iteration-000001", 2), ("iteration-000003", 4)]
    lines = [line for line in session.run_dir.read_metrics() if "iteration" in line]
    assert [line["adapter_version"] for line in lines] == [1] * 5
    assert not any(key.startswith("swap/") for line in lines for key in line)


def test_the_latest_policy_plays_the_next_iteration_by_default(
    session: Session, evaluated: list[tuple[str, int]]
) -> None:
    session.cfg.rollout.policy = RolloutPolicy.latest
    trained(session, rl._begin(session), 3)
    assert [live for live, _ in session.pool.played] == [0, 1, 2]  # type: ignore[attr-defined]
    assert not session.run_dir.start_policy.exists()


def test_each_iteration_has_instances_of_its_own(session: Session, evaluated: object) -> None:
    trained(session, rl._begin(session), 4)
    seeds = [seed for _, seeds in session.pool.played for seed in seeds]  # type: ignore[attr-defined]
    assert len(set(seeds)) == 16
    assert seeds[:4] == [spec.env_seed for spec in training_specs(session.cfg, 0)]


def test_a_resumed_run_goes_on_with_the_start_in_the_engines_and_the_learner_where_it_was(
    session: Session, evaluated: list[tuple[str, int]]
) -> None:
    trained(session, rl._begin(session), 4)
    whole = list(session.pool.played)  # type: ignore[attr-defined]
    fresh = replace(session, pool=Pool(), learner_group=Learner())  # type: ignore[arg-type]
    [newest, *_] = sorted(session.run_dir.checkpoints.iterdir(), reverse=True)
    (newest / "weights").write_text("damaged")  # so that it goes on from the second iteration
    state = training_state.resume(fresh, "iteration", live=True)
    assert (state.steps, fresh.learner.updates, fresh.pool.live) == (2, 2, 0)  # type: ignore[attr-defined]
    trained(fresh, state, 4)
    assert fresh.pool.played == whole[2:]  # type: ignore[attr-defined]
    assert fresh.learner.updates == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", ["canary.json", "adapter_model.safetensors"])
def test_a_start_that_cannot_be_read_stops_the_resume(
    session: Session, evaluated: object, damage: str
) -> None:
    trained(session, rl._begin(session), 2)
    (session.run_dir.start_policy / damage).unlink()
    with pytest.raises((CheckpointError, AdapterError), match=damage):
        training_state.resume(session, "iteration", live=True)


def test_the_end_is_the_current_policys(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the last evaluation, and as the adapter of the run."""
    ends: list[int] = []
    monkeypatch.setattr(training_state, "finish", lambda session, state: ends.append(session.pool.live))
    monkeypatch.setattr(rl, "evaluate_stage_once", silent)
    session.cfg.algo.iterations = 3

    monkeypatch.setattr(rl, "open_session", lambda cfg, with_learner: nullcontext(session))
    rl.run(session.cfg)
    assert ends == [3]
    saved = Adapter.load(session.run_dir.adapter)
    assert float(saved.tensors[f"{MODULE}.lora_A.weight"][0, 0]) == 3.0
    kept = Adapter.load(session.run_dir.start_policy)
    assert (float(kept.tensors[f"{MODULE}.lora_A.weight"][0, 0]), kept.version) == (0.0, 1)


def test_the_gap_of_engine_and_learner_is_the_first_iterations(session: Session, evaluated: object) -> None:
    """Later ones are also the way that the policy has moved from the start."""
    assert trained(session, rl._begin(session), 3).logprob_gaps == [0.1]


def test_go_live_without_a_kept_start_names_the_file(session: Session) -> None:
    with pytest.raises((CheckpointError, AdapterError), match="start_policy"):
        start_policy.go_live(session)
