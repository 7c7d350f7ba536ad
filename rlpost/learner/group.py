"""The learner as the training loops use it: N ranks behind one object.

    LearnerGroup.update_rl ──▶ the same call to every rank ──▶ ranks meet in collectives ──▶ rank 0 answers
                      waits for: all ranks, at most learner.timeout_s; the first error or death ends the wait
    LearnerGroup.check     ──▶ whether all ranks live, while nobody waits for them

After an error the ranks may be out of step, so the group refuses all calls except `close`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from rlpost.cluster import actor_calls
from rlpost.cluster.memory import Memory
from rlpost.cluster.placement import Placement, Plan
from rlpost.config.schema import Config
from rlpost.errors import ClusterError, LearnerError, RlpostError
from rlpost.learner.actor import LearnerActor
from rlpost.learner.checkpoint_folder import fetch, send, signed
from rlpost.learner.named_adapters import NamedAdapters
from rlpost.learner.rendezvous import rendezvous_of
from rlpost.record.files import writing
from rlpost.record.shares import Share, check_ranks
from rlpost.types import Canary, Example, Trajectory
from rlpost.weights.adapters import Adapter

# How long the other ranks are watched after a rank's error. Ray reports a death within 1 to 3 s.
DEATH_NOTICE_S = 10.0


class LearnerGroup:
    """Starts `cfg.learner.workers` ranks in the running Ray cluster. Raises LearnerError if they do not start.

    `examples`: what `cfg.lora.start` reads, the same on every rank; None for a resumed run. `placement`: where each
    rank goes; by default Ray places each by itself.
    """

    def __init__(
        self,
        cfg: Config,
        model_folder: Path,
        canary_ids: Sequence[int],
        examples: Sequence[Example] | None = (),
        placement: Placement | None = None,
    ) -> None:
        self.cfg = cfg
        self._placement = placement or Placement(Plan.of(cfg))
        self.broken: str | None = None
        options = _actor_options(cfg)
        self.workers = [
            ray.remote(**options, **self._placement.rank(rank))(LearnerActor).remote()
            for rank in range(cfg.learner.workers)
        ]
        try:
            addresses = self._answers(
                [w.address.remote() for w in self.workers], "report its address", cfg.ray.timeout_s
            )
            adapters = ray.put(NamedAdapters.of(cfg))
            args = (cfg, str(model_folder), tuple(canary_ids), examples, adapters)
            starts = [
                w.start.remote(*args, place)
                for w, place in zip(self.workers, rendezvous_of(addresses), strict=True)
            ]
            self._answers(starts, "start", cfg.learner.timeout_s)
            named = {self._name(rank): worker for rank, worker in enumerate(self.workers)}
            self._heartbeats = actor_calls.Heartbeats(named)
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

    def save(self, folder: Path) -> list[Share]:
        """Write the learner's whole state into `folder`, a folder of this machine; return what each rank wrote.

        A rank that does not see it writes on its own node, and its files are fetched. Raises LearnerError, ClusterError
        if a rank fails or does not answer, CheckpointError if the share of a rank is missing.
        """
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._find(folder)
        shares: list[Share] = self._each("save")
        for i, share in enumerate(shares):
            fetch(self.workers[i], self._name(i), share, folder, self.cfg.learner.timeout_s)
        self._each("leave")
        check_ranks(folder, len(shares), self._divided)
        return shares

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, on every rank, wherever it runs. Raises as `save` does."""
        check_ranks(folder, len(self.workers), self._divided)
        for i, sees in enumerate(self._find(folder)):
            if not sees:
                send(self.workers[i], self._name(i), i, folder, self.cfg.learner.timeout_s)
        self._each("load")
        self._each("leave")

    def check(self) -> None:
        """Raise LearnerError if a rank has died since its last call. Returns at once."""
        if not self.workers or self.broken is not None:
            return
        try:
            self._heartbeats.check()
        except ClusterError as error:
            self.broken = str(error)
            raise LearnerError(self.broken) from error

    def memory(self) -> list[Memory]:
        """The host memory of each rank."""
        refs = [worker.memory.remote() for worker in self.workers]
        return self._answers(refs, "report its memory", self.cfg.learner.timeout_s)

    def close(self) -> None:
        """End every rank's process. It may be called twice."""
        for worker in self.workers:
            ray.kill(worker)
        self.workers = []

    @property
    def _divided(self) -> bool:
        """Whether each rank has a part of the optimizer's state."""
        return self.cfg.learner.zero_stage > 0

    def _find(self, folder: Path) -> list[bool]:
        """Whether each rank sees the folder of a checkpoint. Ranks work in other folders: the path is absolute."""
        with signed(folder.absolute()) as sign:
            return self._each("find", folder.absolute(), sign)

    def _call(self, method: str, *args: Any) -> Any:
        """The answer of rank 0's learner to a call that all ranks get."""
        return self._each("call", method, *args)[0]

    def _each(self, method: str, *args: Any) -> list[Any]:
        """The answer of every rank's actor."""
        if self.broken is not None or not self.workers:
            raise LearnerError(f"the learner takes no calls any more: {self.broken or 'it was closed'}")
        shared = [ray.put(arg) for arg in args]  # stored once, whatever the number of ranks
        refs = [getattr(worker, method).remote(*shared) for worker in self.workers]
        what = args[0] if method == "call" else method
        return self._answers(refs, what, self.cfg.learner.timeout_s)

    def _answers(self, refs: list[Any], what: str, timeout_s: float) -> list[Any]:
        """All ranks' answers in order. The first error, death or missed deadline raises and breaks the group."""
        who = [self._name(rank, f"asked to {what}") for rank in range(len(refs))]
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

    def _name(self, rank: int, *more: str) -> str:
        """As messages name it, such as `learner rank 1 (node b, 10.0.0.2, asked to export)`."""
        node = self._placement.node_of_rank(rank)
        known = [*([node] if node else []), *more]
        return f"learner rank {rank}" + (f" ({', '.join(known)})" if known else "")


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


def _actor_options(cfg: Config) -> dict[str, Any]:
    env = learner_environment(cfg.learner.threads, cfg.learner.gpus)
    return {"max_restarts": 0, "runtime_env": {"env_vars": env}}
