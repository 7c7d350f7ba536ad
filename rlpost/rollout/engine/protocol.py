"""The interface of an engine. `vllm_engine` is the real one, `scripted` a fake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlpost.types import Canary, Finish, ModelInput
from rlpost.weights.adapters import Adapter


@dataclass(frozen=True)
class Sampling:
    """The settings with which tokens are drawn. Temperature 0 is greedy.

    Log-probs are those of the distribution that is drawn from (after temperature), or at temperature 1 when greedy.
    There is no top-p or top-k: the learner could not match them.
    """

    temperature: float
    max_new_tokens: int
    stop: tuple[str, ...] = ()  # texts that end an answer; the token that completes one is included


@dataclass(frozen=True)
class Completion:
    token_ids: tuple[int, ...]  # with the end-of-turn token if the model wrote it
    logprobs: tuple[float, ...]
    finish: Finish


@dataclass(frozen=True)
class SwapReport:
    """The proof of a swap by an engine."""

    version: int
    fingerprint: str  # of the adapter's tensors, as they arrived at the engine
    modules_bound: int  # parameters of the checkpoint that were rewritten; for LoRA one a module
    modules_expected: int
    canary_gap: float  # mean |log-prob difference| to the learner on the canary
    # ||round(W0 + D) - (W0 + D)|| / ||D||: the share of the update that is lost in the engine's dtype.
    rounding_loss: float
    seconds: float


class Engine(Protocol):
    """Continuous generation: requests can be submitted at any time, and `step` advances all live ones."""

    max_model_len: int

    def submit(self, key: str, prompt: ModelInput, sampling: Sampling, seed: int) -> None:
        """Queue one request. Its answer ends at the latest when the context is full.

        `seed` alone decides its random draws, whatever else is in the batch.
        """

    def step(self) -> list[tuple[str, Completion]]:
        """Advance by one engine step; return the requests that finished, by key."""

    def abort(self, keys: Sequence[str]) -> None:
        """Drop live requests; `step` returns nothing for them. Their keys may be used again."""

    def logprobs(self, token_ids: tuple[int, ...]) -> list[float]:
        """Log-probs of the tokens from the second on, given those before them, at temperature 1."""

    def swap(self, adapter: Adapter, canary: Canary | None, max_gap: float) -> SwapReport:
        """Make `adapter` live and prove it, or restore the previous one and raise SwapError.

        Live requests go on: they keep the tokens that they have, and sample further ones from the new weights, which
        compute the whole context again.
        """

    def reset(self) -> None:
        """Return to the bare base model and to empty caches, as after the start, and prove it.

        Raises SwapError if a proof fails; the engine must not be used any more.
        """

    def sleep(self) -> None:
        """Free the memory of the device. Only `wake` may be called then.

        Raises RolloutError if requests are live, or the engine fails.
        """

    def wake(self) -> None:
        """Serve again what was live before `sleep`, bit for bit, with empty caches. An engine that is awake stays so.

        Raises RolloutError if the device has too little memory free.
        """
