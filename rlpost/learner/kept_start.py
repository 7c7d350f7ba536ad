"""The policy as it was when training began, and how far the policy has moved from it.

The start is a copy on the CPU, not a role: the policy's own parameters take its values for a pass and then get their
own back, bit for bit. So the roles, the optimizer and what an update computes are the same with and without it, and it
is there whatever `algo.reference` is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlpost.algorithms.divergence import divergence
from rlpost.algorithms.roles import POLICY
from rlpost.errors import CheckpointError, LearnerError
from rlpost.learner.deepspeed_backend import DeepSpeedBackend
from rlpost.learner.model.packing import Row
from rlpost.learner.model.role_weights import RoleWeights
from rlpost.learner.steps import Metrics
from rlpost.types import Trajectory, loss_mask, token_ids

FILE = "kept_start.safetensors"


class KeptStart:
    """Holds the start of one rank's policy. `weights` and `backend` are the learner's."""

    def __init__(
        self, weights: RoleWeights, backend: DeepSpeedBackend, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._weights, self._backend, self._parameters = weights, backend, parameters
        self._tensors: dict[str, Tensor] | None = None

    def keep(self) -> None:
        """Copy the current policy."""
        with self._whole(modify=False):
            self._tensors = self._weights.tensors(POLICY)

    def distance(
        self,
        own: Sequence[Trajectory],
        of_start: Sequence[Trajectory],
        logprobs: Callable[[list[Row]], Tensor],
    ) -> Metrics:
        """The figures of `rlpost.algorithms.divergence` in both directions.

        `reverse/...` is KL(policy || start), from episodes that the policy sampled; `forward/...` is KL(start ||
        policy), from those that the start sampled. `logprobs` gives the policy's log-probs (N,) of the rows' loss
        tokens. Every rank calls it with the same episodes. Raises LearnerError if no start was kept, ValueError as
        `divergence`.
        """
        rows = [_rows(own), _rows(of_start)]
        now = [logprobs(each) for each in rows]
        with self._in_place():
            then = [logprobs(each) for each in rows]
        reverse = divergence(now[0], then[0], [t.answer_tokens for t in own])
        forward = divergence(then[1], now[1], [t.answer_tokens for t in of_start])
        named = {"reverse": reverse, "forward": forward}
        return {f"{name}/{key}": value for name, found in named.items() for key, value in found.items()}

    def save(self, folder: Path, writes: bool) -> None:
        """Write the start into a checkpoint, if there is one; `writes`: whether this rank does."""
        if writes and self._tensors is not None:
            save_file(self._tensors, folder / FILE)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises CheckpointError if it is missing."""
        if not (folder / FILE).is_file():
            raise CheckpointError(f"{folder} has no {FILE}; it is incomplete or of another run")
        self._tensors = load_file(folder / FILE)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The policy computes as the start did."""
        if self._tensors is None:
            raise LearnerError("no start was kept, so there is nothing to measure a divergence from")
        with self._whole(modify=True):
            now = self._weights.tensors(POLICY)
            self._weights.load(POLICY, self._tensors)
        try:
            yield
        finally:
            with self._whole(modify=True):
                self._weights.load(POLICY, now)

    def _whole(self, modify: bool) -> AbstractContextManager[None]:
        return self._backend.whole(self._parameters, modify)


def _rows(episodes: Sequence[Trajectory]) -> list[Row]:
    return [Row(token_ids(turns), loss_mask(turns)) for episode in episodes for turns in episode.samples]
