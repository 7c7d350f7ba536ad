"""An iteration of task=rl, done again from its record and compared with it (`rlpost replay`).

the newest checkpoint before it ─▶ learner ─▶ update on the recorded episodes, iteration after iteration
                                     │             compared: the figures of each line; at the end every tensor
                                     └─▶ with rollouts: the policy before the iteration ─▶ engines ─▶ the same
                                         seeds again ─▶ compared token by token

The record is only read. Ray, engines and learner are this command's own, on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from rlpost.cluster import ray_cluster
from rlpost.cluster.ray_cluster import Needs
from rlpost.cluster.user_modules import own_modules
from rlpost.config.presets import TABLE
from rlpost.config.schema import Config, RolloutPolicy, Task
from rlpost.errors import ConfigError, OutputError
from rlpost.learner.deepspeed_backend import stored_tensors
from rlpost.learner.group import LearnerGroup
from rlpost.record import checkpoint, teacher
from rlpost.record.checkpoint import Checkpoint
from rlpost.record.metrics import rollout_metrics
from rlpost.record.replayed import first_figure, first_token
from rlpost.record.run_dir import RunDir, iteration_name, read_trajectories
from rlpost.rollout.chat import Chat
from rlpost.rollout.dynamic_sampling import Collected, collect
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.pool import RolloutPool
from rlpost.tasks import start_policy, training_state, turns
from rlpost.tasks.canary import canary_ids
from rlpost.tasks.engines import whole_weights
from rlpost.tasks.expert_data import ExpertData
from rlpost.tasks.session import training_settings
from rlpost.types import EpisodeSpec, Example, Trajectory
from rlpost.validate.model import check_model
from rlpost.weights import models, teachers
from rlpost.weights.adapters import Adapter
from rlpost.weights.equality import first_tensor


@dataclass(frozen=True)
class Compared:
    """A part of the record, and the first thing in which the replay differs from it; None: none, to the last bit."""

    part: str
    difference: str | None
    weights: bool = False  # whether the part is the weights after the iteration


@dataclass(frozen=True)
class Recorded:
    """An iteration on record. `rounds`: the episodes that were played at once, round by round."""

    line: Mapping[str, Any]
    collected: Collected
    rounds: Sequence[Sequence[EpisodeSpec]]


def start_of(cfg: Config, run_dir: RunDir, iteration: int) -> Checkpoint:
    """The checkpoint from which `iteration`, counted from 0, is done again.

    Raises:
        ConfigError: the run has no such iteration.
        CheckpointError: no checkpoint from before it is whole.
    """
    if cfg.task is not Task.rl:
        raise ConfigError(
            f"{run_dir.path}\n  reason: it has no iterations (task={cfg.task.value})\n"
            "  remedy: name a run of task=rl"
        )
    done = sum("iteration" in line for line in run_dir.read_metrics())
    if not 0 <= iteration < done:
        has = f"its iterations are 0 to {done - 1}" if done else "no iteration has ended"
        raise ConfigError(
            f"--iteration {iteration}\n  reason: the run has no such iteration: {has}\n"
            "  remedy: name one as in the names of its files; the console and the page count from 1"
        )
    return checkpoint.before(run_dir, iteration, training_settings(cfg))


def refuse_rollouts(cfg: Config) -> None:
    """Raise ConfigError if episodes cannot be played again: by an older policy, or in shares that are not on record."""
    for key in ("max_staleness", "lag"):
        if value := getattr(cfg.rollout, key):
            raise ConfigError(
                f"--rollouts\n  reason: with rollout.{key}={value} policies of before played, which are not kept\n"
                "  remedy: leave it out; the updates are replayed on the recorded episodes"
            )
    if most := cfg.rollout.max_workers:
        raise ConfigError(
            f"--rollouts\n  reason: with rollout.max_workers={most} the number of workers changed on the way, and with"
            " it the engines' rounding\n"
            "  remedy: leave it out; the updates are replayed on the recorded episodes"
        )


def replay(
    cfg: Config, run_dir: RunDir, start: Checkpoint, iteration: int, rollouts: bool
) -> Iterator[Compared]:
    """Do `iteration` again, from `start` of `start_of`, and compare; ends early if an iteration before it differs.

    `cfg`: the run's settings, with `resume` naming the run. Raises an RlpostError like a run that resumes.
    """
    with _opened(cfg, run_dir, rollouts) as (learner, pool, experts):
        learner.load(start.path)
        version = training_state.state_in(start).version
        for each in range(start.iteration, iteration + 1):
            recorded = _recorded(cfg, run_dir, each)
            if pool is not None and each == iteration:
                _go_live(cfg, run_dir, learner, pool, version)
                yield _played_again(cfg, pool, recorded)
                pool.sleep()
            learns = experts is not None and each >= cfg.algo.critic_warmup
            examples = experts.of_iteration(each)[0] if experts is not None and learns else []
            yield (updated := _updated_again(learner, recorded, each, examples))
            version += 1
            if updated.difference and each < iteration:
                return
        yield from _weights(cfg, run_dir, learner, iteration, version)


@contextmanager
def _opened(
    cfg: Config, run_dir: RunDir, rollouts: bool
) -> Iterator[tuple[LearnerGroup, RolloutPool | None, ExpertData | None]]:
    """The learner, and if they are asked for, the engines and the expert's answers."""
    model_folder = models.resolve(cfg.model)
    check_model(cfg, model_folder)
    if TABLE[cfg.algo.name].taught and cfg.algo.teacher is not None:
        teacher.check(run_dir.path, cfg.algo.teacher, teachers.fingerprint(cfg.algo.teacher))
    chat = Chat.load(model_folder, cfg.rollout)
    ids = canary_ids(cfg, chat)
    of_learner = Needs(cfg.learner.workers * cfg.learner.cpus, cfg.learner.workers * cfg.learner.gpus)
    with ExitStack() as stack:
        needs = Needs.of(cfg) if rollouts else of_learner
        weights = whole_weights(cfg, model_folder)
        stack.enter_context(ray_cluster.connect(cfg.ray, needs, own_modules(cfg), weights))
        pool = stack.enter_context(closing(RolloutPool(cfg, model_folder))) if rollouts else None
        if pool is not None:
            turns.before_the_learner(cfg, pool)
        learner = stack.enter_context(closing(LearnerGroup(cfg, model_folder, ids, examples=None)))
        experts = stack.enter_context(closing(ExpertData(cfg, chat))) if cfg.algo.expert_coef > 0 else None
        if pool is not None:
            pool.wait_ready()
        yield learner, pool, experts


def _recorded(cfg: Config, run_dir: RunDir, iteration: int) -> Recorded:
    """An iteration on record. Raises OutputError if its episodes are not there, or are not those that it plays."""
    path = run_dir.trajectories_file(iteration_name(iteration))
    line = next(line for line in run_dir.read_metrics() if line.get("iteration") == iteration)
    episodes = {t.episode: t for t in read_trajectories(path)} if path.is_file() else {}
    rounds: list[Sequence[EpisodeSpec]] = []

    def play(specs: Sequence[EpisodeSpec]) -> list[Trajectory]:
        rounds.append(specs)
        return [episodes[spec.episode] for spec in specs]

    try:
        return Recorded(line, collect(play, cfg, iteration), rounds)
    except KeyError as missing:
        raise OutputError(
            f"{path}\n  reason: it has no episode {missing}, which the iteration plays\n"
            "  remedy: restore the file from a copy of the run"
        ) from missing


def _go_live(cfg: Config, run_dir: RunDir, learner: LearnerGroup, pool: RolloutPool, version: int) -> None:
    """Let the engines serve the policy that played the iteration's episodes."""
    if cfg.rollout.policy is RolloutPolicy.start:
        pool.swap(*start_policy.kept(run_dir))
    else:
        pool.swap(*learner.export(version))


def _played_again(cfg: Config, pool: RolloutPool, recorded: Recorded) -> Compared:
    sampling = Sampling(cfg.rollout.temperature, cfg.rollout.max_new_tokens, tuple(cfg.rollout.stop))
    again = [episode for specs in recorded.rounds for episode in pool.collect(specs, sampling)]
    pool.close_environments()
    tokens = sum(t.answer_tokens for t in again)
    part = f"iteration {recorded.line['iteration']}: {len(again)} episodes with {tokens} sampled tokens"
    return Compared(part, first_token(recorded.collected.played, again))


def _updated_again(
    learner: LearnerGroup, recorded: Recorded, iteration: int, examples: Sequence[Example]
) -> Compared:
    update = learner.update_rl(recorded.collected.batch, iteration, examples)
    figures = {name: value for name, value in update.items() if not name.startswith("seconds_")}
    played = rollout_metrics(recorded.collected.played)
    now = {**played, **recorded.collected.metrics, **figures}
    difference, count = first_figure(recorded.line, now)
    return Compared(f"iteration {iteration}: {count} figures of its line in metrics.jsonl", difference)


def _weights(
    cfg: Config, run_dir: RunDir, learner: LearnerGroup, iteration: int, version: int
) -> Iterator[Compared]:
    """Compare the weights after the iteration with what the run kept of them: its adapter, its next checkpoint."""
    if cfg.rollout.policy is RolloutPolicy.latest and (run_dir.adapter / "adapter_config.json").is_file():
        adapter = Adapter.load(run_dir.adapter)
        if adapter.version == version:
            now, _ = learner.export(version)
            part = f"adapter/ (version {version}): {len(now.tensors)} tensors"
            yield Compared(part, first_tensor(adapter.tensors, now.tensors), True)
    following = run_dir.checkpoints / iteration_name(iteration + 1)
    if checkpoint.is_whole(following):
        with tempfile.TemporaryDirectory(prefix="rlpost-replay-") as name:
            learner.save(Path(name))
            yield _checkpoint(following, Path(name))


def _checkpoint(recorded: Path, now: Path) -> Compared:
    """Compare every tensor of two checkpoints, file by file: weights, then the optimizer's state."""
    count, part = 0, f"checkpoints/{recorded.name}"
    for path in sorted(path for path in recorded.rglob("*") if path.suffix in (".pt", ".safetensors")):
        name = path.relative_to(recorded)
        if not (now / name).is_file():
            return Compared(part, f"{name} is on record alone", True)
        then, again = _tensors(path), _tensors(now / name)
        if difference := first_tensor(then, again):
            return Compared(part, f"{name}: {difference}", True)
        count += len(then)
    return Compared(f"{part}: {count} tensors of weights and optimizer", None, True)


def _tensors(path: Path) -> Mapping[str, Any]:
    return stored_tensors(path) if path.suffix == ".pt" else load_file(path)
