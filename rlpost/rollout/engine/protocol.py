"""What the rest of rlpost needs of a generator. `vllm_engine` is the real one, `scripted` a fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlpost.types import Canary, Finish, ModelInput
from rlpost.weights.adapters import Adapter


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; log-probs are those of the distribution drawn from
    (after temperature), or of temperature 1 when greedy. No top-p or top-k: the learner could not match them."""

    temperature: float
    max_new_tokens: int
    stop: tuple[str, ...] = ()  # texts at which an answer ends, with the token that completes one


@dataclass(frozen=True)
class Completion:
    token_ids: tuple[int, ...]  # the end-of-turn token included when the model wrote it
    logprobs: tuple[float, ...]
    finish: Finish


@dataclass(frozen=True)
class SwapReport:
    """What an engine can prove of a swap."""

    version: int
    fingerprint: str  # of the tensors as they lie in the engine, read back
    modules_bound: int  # target modules whose weight was rewritten
    modules_expected: int
    canary_gap: float  # mean |log-prob difference| to the learner on the canary
    rounding_loss: (
        float  # ||round(W0 + D) - (W0 + D)|| / ||D||, share of the update lost to the engine's dtype
    )
    seconds: float


class Engine(Protocol):
    """Continuous generation: submit requests at any time, `step` advances all that are live."""

    max_model_len: int

    def submit(self, key: str, prompt: ModelInput, sampling: Sampling, seed: int) -> None:
        """Queue one request, whose answer ends where the context is full at the latest.

        `seed` alone decides its dice, whatever else is in the batch.
        """

    def step(self) -> list[tuple[str, Completion]]:
        """Advance by one engine step; return the requests that finished, by key."""

    def abort(self, keys: Sequence[str]) -> None:
        """Drop requests that are live; `step` returns nothing of them. Their keys may be used again."""

    def score(self, token_ids: tuple[int, ...]) -> list[float]:
        """Log-probs of tokens 1.. given their predecessors, at temperature 1."""

    def swap(self, adapter: Adapter, canary: Canary | None, max_gap: float) -> SwapReport:
        """Make `adapter` live, prove it, or restore the previous one and raise SwapError."""
