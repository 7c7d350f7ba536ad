"""The real engine: vLLM in this process (rlpost/rollout/engine/vllm_start.py), with merged hot swaps.

    submit   ──▶ vLLM's scheduler ──▶ step ──▶ finished completions
    logprobs ──▶ one prompt through the live weights, past the prefix cache
    swap     ──▶ SwapWorker (engine/swap.py) writes and probes ──▶ canary by `logprobs` ──▶ live, or restored
    sleep    ──▶ vLLM's level 1: weights to the host, KV cache dropped ──▶ wake ──▶ the same weights, an empty cache
    reset    ──▶ the same with the bare base ──▶ log-probs equal to those of the start ──▶ as started, or refused

Nothing runs between calls: an idle engine has no thread that works or spins. With tensor_parallel above 1, vLLM starts
a process a rank; this one then only schedules.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlpost.config.schema import BaseKind
from rlpost.errors import RolloutError, SwapError
from rlpost.rollout.engine.protocol import Completion, Sampling, SwapReport
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.engine.vllm_start import start
from rlpost.rollout.engine.weight_writer import WriteReport, together
from rlpost.types import Canary, Finish, ModelInput
from rlpost.weights.adapters import Adapter

_LOGPROBS = "\0logprobs"  # key of requests for log-probs; no caller's key starts with a NUL
_SEEDS = 1 << 63  # vLLM takes seeds of 63 bits
_TRIAL = (1, 2, 3, 4) * 16  # tokens whose log-probs identify the bare base; every vocabulary has them
_RESTORED = 1e-4  # largest log-prob change that a restored version may show on the canary it was proven with


@dataclass(frozen=True)
class _Live:
    """The adapter that the engine serves, and its log-probs of the canary when it was proven."""

    adapter: Adapter | None = None
    canary: Canary | None = None
    logprobs: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        return "the bare base" if self.adapter is None else f"version {self.adapter.version}"


class VllmEngine:
    """`rlpost.rollout.engine.protocol.Engine` over vLLM, one per process."""

    def __init__(self, settings: EngineSettings):
        """Load, start and warm up; this takes seconds.

        Raises:
            RolloutError: vLLM cannot start (model, memory, device); its own message is quoted.
            SwapError: the base is not the stored one (`settings.base`), and a layer does not take its weight.
        """
        self.max_model_len = settings.max_model_len
        try:
            self._engine, self._vllm = start(settings)
        except Exception as error:
            raise RolloutError(f"vLLM could not start on {settings.model}: {error}") from error
        self._waiting: set[str] = set()
        self._finished: list[tuple[str, Completion]] = []
        self._live = _Live()
        if settings.base != BaseKind.stored.value:
            together(self._engine.collective_rpc("rlpost_set_base", args=(settings.base,)))
        self._trial = _TRIAL[: self.max_model_len - 1]
        self._base_logprobs = self._warm_up()

    def submit(self, key: str, prompt: ModelInput, sampling: Sampling, seed: int) -> None:
        """See `Engine.submit`. Raises RolloutError if the prompt leaves no room for a token, or the key is taken."""
        room = self.max_model_len - len(prompt)
        if room < 1 or not len(prompt):
            raise RolloutError(
                f"Request {key!r}: a prompt of {len(prompt)} tokens does not fit rollout.max_model_len ="
                f" {self.max_model_len} with room to answer. Raise it or shorten the prompt."
            )
        if key in self._waiting:
            raise RolloutError(f"Request {key!r} is already running.")
        params = self._vllm.SamplingParams(
            temperature=sampling.temperature,
            max_tokens=min(sampling.max_new_tokens, room),
            seed=seed % _SEEDS,
            logprobs=0,
            stop=list(sampling.stop),
            # vLLM looks for stop strings in the text; the tokens stay as sampled.
            detokenize=bool(sampling.stop),
            output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
        )
        self._add(key, prompt, params)

    def step(self) -> list[tuple[str, Completion]]:
        """See `Engine.step`."""
        if self._waiting:
            self._advance()
        finished, self._finished = self._finished, []
        return finished

    def abort(self, keys: Sequence[str]) -> None:
        """See `Engine.abort`."""
        self._engine.abort_request([key for key in keys if key in self._waiting])
        self._waiting.difference_update(keys)
        self._finished = [(key, completion) for key, completion in self._finished if key not in keys]

    def logprobs(self, token_ids: tuple[int, ...]) -> list[float]:
        """See `Engine.logprobs`. Other live requests advance meanwhile; `step` returns their results.

        Raises:
            RolloutError: there are more tokens than fit the model's context with room for one more.
        """
        if not 2 <= len(token_ids) < self.max_model_len:
            raise RolloutError(
                f"Cannot score {len(token_ids)} tokens: 2 to {self.max_model_len - 1} are possible."
            )
        params = self._vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=0,
            skip_reading_prefix_cache=True,
            detokenize=False,
            output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
        )
        self._add(_LOGPROBS, ModelInput(token_ids), params)
        answered = None
        while answered is None:
            answered = self._advance()
        return [answered[i][token].logprob for i, token in enumerate(token_ids) if i > 0]

    def swap(self, adapter: Adapter, canary: Canary | None, max_gap: float) -> SwapReport:
        """Make `adapter` live and prove it; see `Engine.swap`.

        Raises:
            SwapError: a proof failed; the message says which, and which adapter is live now.
        """
        started = time.perf_counter()
        try:
            written = self._write(adapter)
            logprobs, gap = self._canary_gap(canary, max_gap)
        except Exception as error:
            self._restore(error)
            reason = str(error).rstrip(".")
            raise SwapError(
                f"Version {adapter.version} was not taken: {reason}. Live is {self._live.name}."
            ) from error
        self._live = _Live(adapter, canary, tuple(logprobs))
        return SwapReport(
            version=adapter.version,
            fingerprint=written.fingerprint,
            modules_bound=written.modules_bound,
            modules_expected=written.modules_expected,
            canary_gap=gap,
            rounding_loss=written.rounding_loss,
            seconds=time.perf_counter() - started,
        )

    def reset(self) -> None:
        """See `Engine.reset`. Proven by probes of the written layers, and by the start's log-probs, bit for bit.

        Raises SwapError: requests are live, or a proof failed.
        """
        if self._waiting or self._finished:
            raise SwapError("Requests are live; an engine with requests cannot be reset.")
        self._write(None)
        self._live = _Live()
        changed = sum(a != b for a, b in zip(self.logprobs(self._trial), self._base_logprobs, strict=True))
        if changed:
            raise SwapError(
                f"The bare base came back changed: {changed} of {len(self._base_logprobs)} log-probs differ from those"
                " of the engine's start."
            )
        self._drop_cache()

    def sleep(self) -> None:
        """See `Engine.sleep`: level 1 of vLLM's sleep mode, for which the settings must ask.

        Level 1 copies the weights to pinned host memory, byte for byte, and drops the KV cache and with it the prefix
        cache. Addresses stay reserved, so the swap's references to live weights hold after `wake`. Level 2 would drop
        the weights too: the live adapter would be lost, and the swap's proofs with it. What a swap keeps on the device
        (buffers of one layer) and CUDA's own memory stay there.
        """
        if self._waiting or self._finished:
            raise RolloutError("Requests are live; an engine with requests cannot sleep (rollout.sleep).")
        try:
            self._engine.sleep(level=1)
        except Exception as error:
            raise RolloutError(f"vLLM could not free the GPU's memory (rollout.sleep): {error}") from error

    def wake(self) -> None:
        """See `Engine.wake`. The log-probs that prove the live version stay valid, since its weights are the same."""
        if not self._engine.is_sleeping():
            return
        try:
            awake = self._engine.wake_up()
        except Exception as error:
            raise RolloutError(
                f"vLLM could not take the GPU's memory back (rollout.sleep): {error}\n  remedy: lower"
                " rollout.gpu_memory_utilization: beside it, the learner keeps its weights and optimizer states there"
            ) from error
        if not awake:
            raise RolloutError("vLLM woke in part: some of its memory is still released (rollout.sleep).")

    def _add(self, key: str, prompt: ModelInput, params: Any) -> None:
        self._engine.add_request(key, self._vllm.tokens_input(list(prompt.token_ids)), params)
        self._waiting.add(key)

    def _advance(self) -> Any | None:
        """Take one engine step. Completions go to `_finished`; log-probs that were asked for are returned."""
        answered = None
        for output in self._engine.step():
            if not output.finished:
                continue
            self._waiting.discard(output.request_id)
            if output.request_id == _LOGPROBS:
                answered = output.prompt_logprobs
            else:
                self._finished.append((output.request_id, _completion(output.outputs[0])))
        return answered

    def _write(self, adapter: Adapter | None) -> WriteReport:
        report = together(self._engine.collective_rpc("rlpost_write", args=(adapter,)))
        self._drop_cache()
        return report

    def _drop_cache(self) -> None:
        """Drop what earlier weights computed. Live requests compute their own part of it again in the next step."""
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise SwapError("vLLM did not drop its prefix cache.")

    def _canary_gap(self, canary: Canary | None, max_gap: float) -> tuple[list[float], float]:
        """The log-probs of the engine and their mean |difference| to the learner's; NaN without a canary."""
        if canary is None:
            return [], math.nan
        logprobs = self.logprobs(canary.token_ids)
        gap = sum(abs(a - b) for a, b in zip(logprobs, canary.logprobs, strict=True)) / len(logprobs)
        if not gap <= max_gap:
            raise SwapError(
                f"On the canary the engine's log-probs differ from the learner's by {gap:.4f} in the mean;"
                f" rollout.max_canary_gap is {max_gap}."
            )
        return logprobs, gap

    def _restore(self, reason: Exception) -> None:
        """Restore the previous adapter, proven by probes and by the log-probs of its own canary."""
        live = self._live
        try:
            self._write(live.adapter)
            moved = 0.0
            if live.canary is not None:
                again = self.logprobs(live.canary.token_ids)
                moved = max(abs(a - b) for a, b in zip(again, live.logprobs, strict=True))
        except Exception as error:
            raise SwapError(
                f"A swap failed ({reason}) and {live.name} could not be restored: {error}"
            ) from error
        if not moved <= _RESTORED:
            raise SwapError(
                f"A swap failed ({reason}) and {live.name} came back changed by {moved:.2g} log-prob."
            )

    def _warm_up(self) -> list[float]:
        """Run a first batch, since it pays for first uses (kernels, caches). Returns the log-probs of `_trial`."""
        for i in range(4):
            self.submit(f"warm-up {i}", ModelInput((1, 2, 3, 4)), Sampling(1.0, 4), seed=i)
        while self._waiting:
            self.step()
        logprobs = self.logprobs(self._trial)
        self._engine.reset_prefix_cache()
        return logprobs


def _completion(output: Any) -> Completion:
    """The completion of a finished request. Raises RolloutError if vLLM gave up on the request."""
    if output.finish_reason not in ("stop", "length"):
        raise RolloutError(f"vLLM ended a request with {output.finish_reason!r}.")
    ids = tuple(output.token_ids)
    logprobs = tuple(at[token].logprob for token, at in zip(ids, output.logprobs, strict=True))
    # The reason is the stop string; vLLM gives none for the end of a turn.
    at_string = isinstance(output.stop_reason, str)
    return Completion(ids, logprobs, Finish.STOP_STRING if at_string else Finish(output.finish_reason))
