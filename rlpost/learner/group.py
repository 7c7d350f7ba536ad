"""The learner as the training loops use it: N ranks behind one object.

    LearnerGroup.update_rl ──▶ the same call to every rank ──▶ ranks meet in collectives ──▶ rank 0 answers
                      waits for: all ranks, at most learner.timeout_s; the first error or death ends the wait

After an error the ranks may be out of step, so the group refuses all calls except `close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlpost.cluster import actor_calls
from rlpost.cluster.memory import Memory
from rlpost.config.schema import Config
from rlpost.errors import ClusterError, LearnerError, RlpostError
from rlpost.learner.actor import LearnerActor
from rlpost.learner.rendezvous import Rendezvous
from rlpost.types import Canary, Example, Trajectory
from rlpost.weights.adapters import Adapter

# How long the other ranks are watched after a rank's error. Ray reports a death within 1 to 3 s.
DEATH_NOTICE_S = 10.0


class LearnerGroup:
    """Starts `cfg.learner.workers` ranks in the running Ray cluster. Raises LearnerError if they do not start.

    `examples`: what `cfg.lora.start` reads, the same on every rank; None for a resumed run.
    """

    def __init__(
        self,
        cfg: Config,
        model_folder: Path,
        canary_ids: Sequence[int],
        examples: Sequence[Example] | None = (),
    ) -> None:
        self.cfg = cfg
        self.broken: str | None = None
        actor = ray.remote(**_actor_options(cfg))(LearnerActor)
        self.workers = [actor.remote() for _ in range(cfg.learner.workers)]
        try:
            addresses = self._answers(
                [w.address.remote() for w in self.workers], "report its address", cfg.ray.timeout_s
            )
            host, port = addresses[0]
            world_size = len(self.workers)
            args = (_for_ranks(cfg), str(model_folder), tuple(canary_ids), examples)
            starts = [
                w.start.remote(*args, Rendezvous(host, port, rank, world_size))
                for rank, w in enumerate(self.workers)
            ]
            self._answers(starts, "start", cfg.learner.timeout_s)
        except BaseException:
            self.close()
            raise

    def sft_step(self, examples: Sequence[Example], step: int) -> dict[str, float]:
        """One SFT step; `step` counts from 0."""
        return self._call("sft_step", list(examples), step)

    def sft_loss(self, examples: Sequence[Example]) -> dict[str, float]:
        """`loss`: the mean negative log-likelihood per loss token, in nats, without a step; `tokens`: how many."""
        return self._call("sft_loss", list(examples))

    def keep_start(self) -> None:
        """Keep a copy of the current policy, from which `distance` measures."""
        self._call("keep_start")

    def distance(self, own: Sequence[Trajectory], of_start: Sequence[Trajectory]) -> dict[str, float]:
        """How far the policy is from its start, in nats; see rlpost.learner.kept_start.KeptStart.distance."""
        return self._call("distance", list(own), list(of_start))

    def update_rl(
        self, trajectories: Sequence[Trajectory], iteration: int, examples: Sequence[Example] = ()
    ) -> dict[str, float]:
        """One update by `algo.name`, with expert answers; `iteration` counts from 0. See rlpost.learner.update."""
        return self._call("update_rl", list(trajectories), iteration, list(examples))

    def set_reference(self) -> None:
        """Make the current policy the frozen KL reference, and reset the optimizer."""
        self._call("set_reference")

    def export(self, version: int) -> tuple[Adapter, Canary]:
        """The current policy adapter as `version`, with its log-probs of the canary."""
        return self._call("export", version)

    def save(self, folder: Path) -> None:
        """Write the learner's whole state into `folder`, which must be reachable from every rank."""
        folder.mkdir(parents=True, exist_ok=True)
        self._call("save", folder.absolute())

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        self._call("load", folder.absolute())

    def memory(self) -> list[Memory]:
        """The host memory of each rank."""
        refs = [worker.memory.remote() for worker in self.workers]
        return self._answers(refs, "report its memory", self.cfg.learner.timeout_s)

    def close(self) -> None:
        """End every rank's process. It may be called twice."""
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    def _call(self, method: str, *args: Any) -> Any:
        if self.broken is not None or not self.workers:
            raise LearnerError(f"the learner takes no calls any more: {self.broken or 'it was closed'}")
        shared = [ray.put(arg) for arg in args]  # stored once, whatever the number of ranks
        refs = [worker.call.remote(method, *shared) for worker in self.workers]
        return self._answers(refs, method, self.cfg.learner.timeout_s)[0]

    def _answers(self, refs: list[Any], what: str, timeout_s: float) -> list[Any]:
        """All ranks' answers in order. The first error, death or missed deadline raises and breaks the group."""
        who = [f"learner rank {rank} (asked to {what})" for rank in range(len(refs))]
        try:
            return _watched(refs, timeout_s, who)
        except RayTaskError as error:
            self.broken = f"a rank failed when asked to {what}: {type(error.cause).__name__}: {error.cause}"
            raise LearnerError(f"{self.broken}\n{error}") from error
        except RlpostError as error:
            self.broken = str(error)
            if isinstance(error, ClusterError):
                raise LearnerError(str(error)) from error
            raise


def _watched(refs: list[Any], timeout_s: float, who: list[str]) -> list[Any]:
    """Like actor_calls.get_all, but a rank's death is reported instead of the errors it causes on other ranks."""
    try:
        return actor_calls.get_all(refs, timeout_s, who)
    except RayTaskError:
        actor_calls.watch_for_deaths(refs, DEATH_NOTICE_S, who)
        raise


def learner_environment(threads: int, gpus: float) -> dict[str, str]:
    """Environment variables of a learner's process, which must be set before it starts.

    Threads wait as OpenMP does by default: they spin briefly. If they sleep at once, a step takes 1.6 times as long.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # Keep freed activations: mapping new pages for them in every layer took half of a step (measured).
        "MALLOC_MMAP_THRESHOLD_": str(2**32),
        "MALLOC_TRIM_THRESHOLD_": str(2**36),
        "DS_ACCELERATOR": "cuda" if gpus > 0 else "cpu",
    }


def _for_ranks(cfg: Config) -> Config:
    """The settings with absolute paths, because on a joined cluster a rank works in another folder."""
    teacher = cfg.algo.teacher
    if teacher is not None and Path(teacher).is_dir():
        cfg = replace(cfg, algo=replace(cfg.algo, teacher=str(Path(teacher).absolute())))
    return cfg if cfg.adapter is None else replace(cfg, adapter=str(Path(cfg.adapter).absolute()))


def _actor_options(cfg: Config) -> dict[str, Any]:
    env = learner_environment(cfg.learner.threads, cfg.learner.gpus)
    resources = {"num_cpus": cfg.learner.cpus, "num_gpus": cfg.learner.gpus}
    return resources | {"max_restarts": 0, "runtime_env": {"env_vars": env}}
