"""Warns once if a run cannot learn: all rewards of its batches are equal, or its updates have no gradient.

each iteration's batch and metrics ─▶ Stall.see ─▶ a warning after PATIENCE such iterations in a row, then silence
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rlpost.config.presets import TABLE, Estimator
from rlpost.config.schema import AlgoConfig
from rlpost.rollout.dynamic_sampling import is_flat
from rlpost.types import Trajectory

PATIENCE = 3  # iterations in a row; single ones are common if a task is hard or nearly solved


class Stall:
    """Counts the consecutive iterations without anything to learn. A resumed run starts to count again."""

    def __init__(self, algo: AlgoConfig) -> None:
        self._grouped = TABLE[algo.name].grouped
        self._wants_success = TABLE[algo.name].estimator is Estimator.success
        # Whether equal rewards leave a gradient: the teacher's, or that of expert answers.
        self._learns_anyway = TABLE[algo.name].taught or algo.expert_coef > 0
        self._flat = self._still = 0
        self._said = False

    def see(self, batch: Sequence[Trajectory], metrics: Mapping[str, float]) -> str | None:
        """Count an iteration, given its episodes and its update's metrics. Returns the warning when it is due."""
        self._flat = self._flat + 1 if self._nothing_teaches(batch, metrics) else 0
        self._still = self._still + 1 if metrics.get("grad_norm_policy") == 0 else 0
        if self._said or max(self._flat, self._still) < PATIENCE:
            return None
        self._said = True
        reason = self._flat_batches(batch) if self._flat >= PATIENCE else "the policy's gradient was 0"
        return (
            f"this run cannot learn as it is: in each of the last {PATIENCE} iterations {reason}. Where every answer"
            " fails: begin with a warm start (sft.steps) or an easier variant, let the environment grade answers,"
            f" or raise {'rollout.group_size or ' if self._grouped else ''}rollout.temperature. Where every answer is"
            " right: take a harder variant, or stop here"
        )

    def _nothing_teaches(self, batch: Sequence[Trajectory], metrics: Mapping[str, float]) -> bool:
        """Whether no episode was chosen (algo=rft, dpo), or all rewards are equal: within each group if groups are
        compared, else in the whole batch. Never if something else is learnt from."""
        if self._learns_anyway:
            return False
        if "kept_episodes" in metrics:
            return metrics["kept_episodes"] == 0
        if not self._grouped:
            return len(batch) > 1 and is_flat(batch)
        return all(is_flat(list(group)) for _, group in groupby(batch, key=lambda t: t.group))

    def _flat_batches(self, batch: Sequence[Trajectory]) -> str:
        if self._wants_success:
            return "no episode succeeded"
        among = "of each group" if self._grouped else "of the batch"
        mean = sum(t.total_reward for t in batch) / len(batch)
        return f"all episodes {among} earned the same reward (now {mean:.3f} on average)"
