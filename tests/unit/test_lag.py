"""`rollout.lag=k`: the policy of k updates ago plays training's episodes, the current policy all evaluations."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rlpost import run
from rlpost.config.compose import to_yaml
from rlpost.config.rollout_correction import importance_weights
from rlpost.config.schema import Config, RolloutIS, Task
from rlpost.errors import AdapterError, CheckpointError, ConfigError
from rlpost.record.metrics import Clock
from rlpost.record.run_dir import RunDir
from rlpost.tasks import lag, rl, training_state
from rlpost.tasks.schedule import Schedule
from rlpost.tasks.session import Session
from rlpost.tasks.training_state import TrainingState
from rlpost.weights.adapters import Adapter
from rlpost.weights.models import TINY
from tests.unit.test_start_policy import Learner, Pool, adapter, silent

Seen = list[tuple[str, int]]


def opened(folder: Path, behind: int, every: int = 2) -> Session:
    """A run whose learner's policy is the count of its updates, and whose pool notes which policy played."""
    cfg = Config()
    cfg.rollout.lag, cfg.rollout.episodes, cfg.tracking.checkpoint_every = behind, 4, 2
    cfg.sft.steps, cfg.eval.start, cfg.eval.every = 0, False, every
    told, tracker = SimpleNamespace(stage=silent, iteration=silent), SimpleNamespace(log=silent)
    parts: dict[str, Any] = {"chat": None, "pool": Pool(), "tracker": tracker, "progress": told}
    return Session(
        cfg=cfg,
        console=Console(),
        model_folder=TINY,
        run_dir=RunDir.create(folder, "name", 0, to_yaml(cfg)),
        clock=Clock(lambda: 0),
        started=0.0,
        learner_group=Learner(),  # type: ignore[arg-type]
        **parts,
    )


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The stages that were evaluated, with the policy in the engines."""
    seen: Seen = []
    note = lambda session, stage, finished: seen.append((stage, session.pool.live))  # noqa: E731
    monkeypatch.setattr(rl, "evaluate_stage_once", note)
    monkeypatch.setattr("rlpost.tasks.spectrum.on_the_way", lambda session: {})
    return seen


def trained(session: Session, state: TrainingState, last: int) -> TrainingState:
    schedule = Schedule(session.cfg, last, TINY)
    schedule.replay(session.run_dir.read_metrics(), "iteration")
    rl._train(session, schedule, state)
    return state


def players(session: Session) -> list[int]:
    return [live for live, _ in session.pool.played]  # type: ignore[attr-defined]


def versions(session: Session) -> list[int]:
    return [line["adapter_version"] for line in session.run_dir.read_metrics() if "iteration" in line]


@pytest.mark.parametrize("behind", [0, 1, 2, 4, 9])
def test_each_batch_is_played_by_the_policy_of_that_many_updates_ago(
    tmp_path: Path, evaluated: Seen, behind: int
) -> None:
    session = opened(tmp_path / "run", behind)
    state = trained(session, rl._begin(session), 6)
    assert players(session) == [max(0, i - behind) for i in range(6)]
    assert versions(session) == [1 + max(0, i - behind) for i in range(6)]
    assert evaluated == [("iteration-000001", 2), ("iteration-000003", 4)]
    assert state.version == 7


def test_the_episodes_are_those_of_a_run_without_lag(tmp_path: Path, evaluated: Seen) -> None:
    played = []
    for behind in (0, 2):
        session = opened(tmp_path / str(behind), behind)
        trained(session, rl._begin(session), 4)
        played.append([seeds for _, seeds in session.pool.played])  # type: ignore[attr-defined]
    assert played[0] == played[1]


@pytest.mark.parametrize("behind", [1, 2, 5])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path, evaluated: Seen, behind: int) -> None:
    session = opened(tmp_path / "run", behind)
    trained(session, rl._begin(session), 6)
    whole, at = list(session.pool.played), versions(session)  # type: ignore[attr-defined]
    fresh = replace(session, pool=Pool(), learner_group=Learner())  # type: ignore[arg-type]
    [newest, *_] = sorted(session.run_dir.checkpoints.iterdir(), reverse=True)
    (newest / "weights").write_text("damaged")  # so that it goes on from the fourth iteration
    state = training_state.resume(fresh, "iteration", live=True)
    assert (state.steps, fresh.pool.live) == (4, max(0, 4 - behind))  # type: ignore[attr-defined]
    trained(fresh, state, 6)
    assert fresh.pool.played == whole[4:]  # type: ignore[attr-defined]
    assert versions(session) == at


def test_a_checkpoint_holds_the_versions_before_the_current_one(tmp_path: Path, evaluated: Seen) -> None:
    session = opened(tmp_path / "run", 2)
    trained(session, rl._begin(session), 4)
    [newest, *_] = sorted(session.run_dir.checkpoints.iterdir(), reverse=True)
    held = sorted((newest / lag.FOLDER).iterdir())
    assert [folder.name for folder in held] == ["version-000003", "version-000004"]
    assert [Adapter.load(folder).version for folder in held] == [3, 4]
    named = json.loads((newest / "progress.json").read_text())["files"]
    assert f"{lag.FOLDER}/version-000003/canary.json" in named


def test_without_lag_a_checkpoint_is_as_it_was(tmp_path: Path, evaluated: Seen) -> None:
    session = opened(tmp_path / "run", 0)
    trained(session, rl._begin(session), 2)
    [newest, *_] = sorted(session.run_dir.checkpoints.iterdir(), reverse=True)
    assert sorted(path.name for path in newest.iterdir()) == ["progress.json", "weights"]


@pytest.mark.parametrize("damage", ["canary.json", "adapter_model.safetensors"])
def test_a_version_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    policies = lag.RecentPolicies(2)
    for version in (1, 2, 3):
        policies.add(*Learner().export(version))
    policies.save(tmp_path)
    (tmp_path / lag.FOLDER / "version-000002" / damage).unlink()
    with pytest.raises((CheckpointError, AdapterError), match=damage):
        lag.RecentPolicies(2).load(tmp_path)


def test_the_end_is_the_current_policys(
    tmp_path: Path, evaluated: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the last evaluation, and as the adapter of the run."""
    session, ends = opened(tmp_path / "run", 2), list[int]()
    monkeypatch.setattr(training_state, "finish", lambda session, state: ends.append(session.pool.live))
    session.cfg.algo.iterations = 3

    monkeypatch.setattr(rl, "open_session", lambda cfg, with_learner: nullcontext(session))
    rl.run(session.cfg)
    assert ends == [3]
    saved = Adapter.load(session.run_dir.adapter)
    assert (saved.fingerprint, saved.version) == (adapter(3.0, 4).fingerprint, 4)


def test_the_gap_of_engine_and_learner_is_the_first_iterations(tmp_path: Path, evaluated: Seen) -> None:
    session = opened(tmp_path / "run", 1)
    assert trained(session, rl._begin(session), 3).logprob_gaps == [0.1]


def test_only_reinforcement_learning_lags(tmp_path: Path) -> None:
    """An arm of SFT may stand beside one of RL in a comparison with `rollout.lag`; its evaluations are current."""
    session = opened(tmp_path / "run", 2)
    session.cfg.task = Task.sft
    supervised, state = replace(session), TrainingState()
    for _ in range(3):
        training_state.swap(supervised, state)
    assert supervised.pool.version == 3  # type: ignore[attr-defined]


GRPO = "experiment=navigation_grpo"


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run.prepare([GRPO, *overrides])
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rollout.lag=-1"], "rollout.lag=-1\n  reason: out of range"),
        (["task=sft", "rollout.lag=1"], "rollout.lag=1\n  reason: nothing reads it: only task=rl"),
        (
            ["rollout.lag=1", "rollout.policy=start", "algo.old_logprobs=engine", "algo.kl=none"],
            "rollout.lag=1\n  reason: rollout.policy=start plays every episode",
        ),
        (
            ["algo.rollout_is=mask", "algo.old_logprobs=engine"],
            "the ratio itself is that of learner to engine",
        ),
        (
            ["algo.rollout_reject=geometric", "algo.rollout_reject_cap=1.1", "algo.old_logprobs=engine"],
            "algo.rollout_reject=geometric\n  reason: with algo.old_logprobs=engine",
        ),
        (
            ["algo.rollout_reject=sequence"],
            "algo.rollout_reject_cap=null\n  reason: algo.rollout_reject=sequence",
        ),
        (["algo.rollout_reject_cap=2"], "nothing reads it: algo.rollout_reject=none"),
        (["algo.rollout_is_level=turn"], "nothing reads it: algo.rollout_is=none (auto is none"),
        (
            ["algo.rollout_is=mask", "algo.rollout_is_floor=1.5"],
            "algo.rollout_is_floor=1.5\n  reason: out of range",
        ),
        (
            ["algo=gspo", "algo.trust_region=tv"],
            "algo.trust_region=tv\n  reason: it is the divergence of a token",
        ),
        (["algo=rft", "algo.trust_region=tv"], "nothing reads it: algo=rft takes no probability ratio"),
        (["algo=rft", "algo.rollout_reject=sequence"], "fits answers whoever sampled them"),
        (["algo.max_divergence=0.1"], "nothing reads it: algo.trust_region=ratio"),
        (["algo.trust_region=kl", "algo.clip=0.1"], "algo.trust_region takes the clip's place"),
    ],
)
def test_what_contradicts_or_has_no_effect_is_refused(overrides: list[str], told: str) -> None:
    assert told in refused(*overrides)


@pytest.mark.parametrize(
    ("overrides", "weights"),
    [
        ([], RolloutIS.none),
        (["rollout.lag=2"], RolloutIS.truncate),
        (["rollout.lag=2", "algo.rollout_is=none"], RolloutIS.none),
        (["rollout.lag=2", "algo.rollout_is_cap=3", "algo.rollout_is_level=geometric"], RolloutIS.truncate),
        (["rollout.lag=2", "algo.old_logprobs=engine"], RolloutIS.none),
        (["rollout.lag=2", "algo=rft"], RolloutIS.none),
        (["algo=cispo", "algo.trust_region=tv", "algo.clip_high=9"], RolloutIS.none),
        (["algo.rollout_reject=geometric", "algo.rollout_reject_cap=1.1"], RolloutIS.none),
    ],
)
def test_what_goes_together_is_accepted(overrides: list[str], weights: RolloutIS) -> None:
    assert importance_weights(run.prepare([GRPO, *overrides])) is weights
