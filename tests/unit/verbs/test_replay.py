"""rlpost replay on a written record, with a learner and engines that stand in: what it plays, compares and refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlpost.config.compose import compose, to_yaml
from rlpost.errors import CheckpointError, ConfigError, OutputError
from rlpost.record import checkpoint
from rlpost.record.metrics import rollout_metrics
from rlpost.record.run_dir import RunDir, iteration_name
from rlpost.record.shares import Share, share_of
from rlpost.rollout.engine.protocol import Sampling
from rlpost.tasks import replay
from rlpost.tasks.session import training_settings
from rlpost.tasks.training_state import TrainingState
from rlpost.types import EpisodeSpec, Example, Trajectory
from rlpost.verbs import replay as verb
from tests.unit.episodes import episode, turn

EPISODES, ITERATIONS, KEPT = 4, 6, (2, 4)
SETTINGS = (
    "experiment=generalpoints_grpo",
    "dtype=float32",
    f"rollout.episodes={EPISODES}",
    "rollout.group_size=2",
)


def played(specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
    """Episodes whose first answer is as long as their iteration is late."""
    return [
        replace(
            episode(turn(tokens=2 + spec.iteration), index=spec.episode),
            iteration=spec.iteration,
            group=spec.group,
        )
        for spec in specs
    ]


class Learner:
    """Its weights count the sampled tokens that it has learnt from."""

    def __init__(self, error: float = 0.0, of_iteration: int = 0) -> None:
        self.weight, self.error, self.of_iteration = torch.zeros(1), error, of_iteration

    def load(self, folder: Path) -> None:
        self.weight = load_file(folder / "state.safetensors")["weight"]

    def save(self, folder: Path) -> list[Share]:
        save_file({"weight": self.weight}, folder / "state.safetensors")
        return [share_of(folder, 0)]

    def update_rl(
        self, batch: Sequence[Trajectory], iteration: int, examples: Sequence[Example] = ()
    ) -> dict[str, float]:
        self.weight = self.weight + sum(t.answer_tokens for t in batch)
        if iteration == self.of_iteration:
            self.weight += self.error
        return {"policy_loss": self.weight.item(), "seconds_update": 1.0}

    def export(self, version: int) -> tuple[int, None]:
        return version, None


class Pool:
    def __init__(self) -> None:
        self.live = [-1]

    def swap(self, adapter: int, canary: None) -> None:
        self.live.append(adapter)

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> list[Trajectory]:
        return played(specs)

    def sleep(self) -> None:
        pass

    def close_environments(self) -> list[str]:
        return []


@pytest.fixture
def recorded(tmp_path: Path) -> RunDir:
    """Six iterations with checkpoints after two and four."""
    cfg, learner = compose(SETTINGS), Learner(of_iteration=-1)
    run_dir = RunDir.create(tmp_path / "run", "name", 0, to_yaml(cfg))
    run_dir.write_versions()
    for i in range(ITERATIONS):
        if i in KEPT:
            state = asdict(TrainingState(steps=i, version=i + 1))
            checkpoint.save(run_dir, i, learner.save, state, training_settings(cfg))
        batch = played(replay_specs(cfg, i))
        run_dir.write_trajectories(iteration_name(i), batch)
        numbers = {**rollout_metrics(batch), **learner.update_rl(batch, i)}
        run_dir.append_metrics({"stage": "rl", "iteration": i, **numbers})
    return run_dir


def replay_specs(cfg: Any, iteration: int) -> list[EpisodeSpec]:
    from rlpost.rollout.specs import training_specs

    return training_specs(cfg, iteration)


Run = Callable[..., int]


@pytest.fixture
def run(recorded: RunDir, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`rlpost replay` with the given learner and pool in place of real ones."""

    def main(*words: str, learner: Learner | None = None, pool: Pool | None = None) -> int:
        @contextmanager
        def opened(*_: Any) -> Iterator[tuple[Any, Any, None]]:
            yield learner or Learner(), pool, None

        monkeypatch.setattr(replay, "_opened", opened)
        return verb.main([str(recorded.path), *words])

    return main


def test_an_iteration_is_replayed_from_the_checkpoint_before_it(run: Run, capsys: Any) -> None:
    assert run("--iteration", "3") == 0
    out = capsys.readouterr().out
    assert "replaying 2 updates from" in out
    assert "iteration-000002" in out
    assert out.count("equal to the last bit") == 3, "two lines, and the checkpoint after iteration 3"
    assert "checkpoints/iteration-000004: 1 tensors of weights and optimizer: equal" in out


def test_where_no_weights_are_kept_the_figures_alone_are_compared_and_it_says_so(
    run: Run, capsys: Any
) -> None:
    assert run("--iteration", "4") == 0
    out = capsys.readouterr().out
    assert "iteration-000004" in out
    assert "The weights after iteration 4 are not kept" in out


def test_the_first_iteration_that_differs_ends_the_replay(run: Run, capsys: Any) -> None:
    assert run("--iteration", "3", learner=Learner(error=1.0, of_iteration=2)) == 1
    out = capsys.readouterr().out
    assert "iteration 2:" in out
    assert "policy_loss is 36.0 on record, 37.0 now (by 1)" in out
    assert "iteration 3:" not in out


def test_weights_that_differ_are_named_with_the_difference(run: Run, capsys: Any) -> None:
    assert run("--iteration", "3", learner=Learner(error=0.5, of_iteration=3)) == 1
    assert "state.safetensors: weight differs in 1 of 1 values, by 0.5 at most" in capsys.readouterr().out


def test_episodes_are_played_again_under_the_version_that_played_them(run: Run, capsys: Any) -> None:
    pool = Pool()
    assert run("--iteration", "3", "--rollouts", pool=pool) == 0
    assert pool.live == [-1, 4]
    assert "iteration 3: 4 episodes with 20 sampled tokens: equal to the last bit" in capsys.readouterr().out


def test_an_episode_that_differs_is_named(run: Run, recorded: RunDir, capsys: Any) -> None:
    path = recorded.trajectories_file("iteration-000003")
    path.write_text(
        path.read_text().replace('"answer_ids": [0, 1, 2, 3, 4]', '"answer_ids": [0, 1, 2, 9, 4]', 1)
    )
    assert run("--iteration", "3", "--rollouts", pool=Pool()) == 1
    assert "turn 0, sampled token 3: 9 on record, 3 now" in capsys.readouterr().out


def test_what_cannot_be_replayed_is_refused_with_what_can(run: Run, recorded: RunDir) -> None:
    with pytest.raises(CheckpointError, match="name an iteration from 2 on"):
        run("--iteration", "1")
    with pytest.raises(ConfigError, match="its iterations are 0 to 5"):
        run("--iteration", "6")
    recorded.trajectories_file("iteration-000003").unlink()
    with pytest.raises(OutputError, match="it has no episode 0"):
        run("--iteration", "3")


@pytest.mark.parametrize("setting", ["rollout.lag=2", "rollout.max_staleness=1"])
def test_episodes_of_policies_that_are_not_kept_cannot_be_played_again(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"with {setting} policies of before played"):
        replay.refuse_rollouts(compose([*SETTINGS, setting]))
    with pytest.raises(ConfigError, match=r"with rollout\.max_workers=2 the number of workers changed"):
        replay.refuse_rollouts(compose([*SETTINGS, "rollout.max_workers=2", "ray.address=auto"]))
    replay.refuse_rollouts(compose([*SETTINGS]))


def test_a_damaged_checkpoint_is_not_begun_from(run: Run, recorded: RunDir) -> None:
    path = recorded.checkpoints / "iteration-000002" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="the oldest whole one has 4 iterations"):
        run("--iteration", "3")


def test_other_settings_are_refused(run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"algo\.clip=0\.3"):
        run("--iteration", "3", "algo.clip=0.3")


def test_other_versions_are_named_before_anything_starts(run: Run, recorded: RunDir, capsys: Any) -> None:
    text = recorded.versions.read_text()
    recorded.versions.write_text(text.replace('"cpu_count": ', '"cpu_count": 9'))
    assert run("--iteration", "3") == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: the run was made with cpu_count 9")
