"""The real engine: vLLM in this process, with merged hot swaps. Only this file imports vllm.

    submit   ──▶ vLLM's scheduler ──▶ step ──▶ finished completions
    logprobs ──▶ one prompt through the live weights, past the prefix cache
    swap     ──▶ SwapWorker (engine/swap.py) writes and probes ──▶ canary by `logprobs` ──▶ live, or restored
    reset    ──▶ the same with the bare base ──▶ log-probs equal to those of the start ──▶ as started, or refused

Nothing runs between calls: an idle engine has no thread that works or spins. With tensor_parallel above 1, vLLM starts
a process a rank; this one then only schedules.
"""

from __future__ import annotations

import gc
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rlpost.config.schema import BaseKind
from rlpost.errors import RolloutError, SwapError
from rlpost.rollout.engine import ranks
from rlpost.rollout.engine.protocol import Completion, Sampling, SwapReport
from rlpost.rollout.engine.settings import EngineSettings, engine_environment
from rlpost.rollout.engine.swap import WORKER_EXTENSION
from rlpost.rollout.engine.weight_writer import WriteReport, together
from rlpost.types import Canary, Finish, ModelInput
from rlpost.weights.adapters import Adapter

__all__ = ["EngineSettings", "VllmEngine", "engine_args"]

_LOGPROBS = "\0logprobs"  # key of requests for log-probs; no caller's key starts with a NUL
_SEEDS = 1 << 63  # vLLM takes seeds of 63 bits
# Tokens per KV block. Prompts share whole blocks only, and the CPU kernels need multiples of 32.
_CPU_BLOCK = 32
_PREFILL_TOKENS = 8192  # prompt tokens per engine step on CPU, where prompts stay whole
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
            self._engine, self._vllm = _start(settings)
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
            SwapError: requests are live, or a proof failed; the message says which, and which adapter is live now.
        """
        if self._waiting:
            raise SwapError(f"{len(self._waiting)} requests are live; finish them before a swap.")
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
        if not self._engine.reset_prefix_cache():
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


@dataclass(frozen=True)
class _Vllm:
    """The few names of vLLM that are used after the start."""

    SamplingParams: Any
    RequestOutputKind: Any
    tokens_input: Any


def _start(settings: EngineSettings) -> tuple[Any, _Vllm]:
    environment = engine_environment(settings.threads, settings.enforce_eager, settings.tensor_parallel)
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    with _uncollected():
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        _do_not_count()
        names = engine_args(settings, torch.cuda.is_available())
        executor = _executor() if settings.tensor_parallel == 1 else _ranks_executor()
        args = EngineArgs(**names, distributed_executor_backend=executor)
        gc.freeze()  # vLLM collects garbage five times at start; this exempts the modules just loaded
        before = ranks.shared_memory()
        with _threads(settings.threads), _sockets():
            engine = LLMEngine.from_engine_args(args)
    if settings.tensor_parallel > 1:
        engine.collective_rpc("rlpost_forget_shared_memory")
        ranks.forget(ranks.shared_memory() - before)
        engine.model_executor.register_failure_callback(ranks.end_process)
    return engine, _Vllm(SamplingParams, RequestOutputKind, tokens_input)


def _do_not_count() -> None:
    """Spare vLLM's sampler the place of a token among all words, which is not used."""
    from vllm.v1.sample import sampler

    sampler.batched_count_greater_than = _unranked


def _unranked(logprobs_BV: torch.Tensor, chosen_B1: torch.Tensor) -> torch.Tensor:
    """Replaces that count: on a CPU 10 of 66 ms per step (SmolLM2)."""
    return torch.zeros(len(chosen_B1), dtype=torch.long, device=chosen_B1.device)


def _executor() -> type:
    """vLLM's executor in this process, without a file left in the temporary folder.

    vLLM starts a process group, here with one process, through a file that it never removes. This one uses memory and
    ends with the process, however that ends.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    class InMemory(UniProcExecutor):
        def _distributed_args(self) -> tuple[str, int, int]:
            _, rank, local_rank = super()._distributed_args()
            return f"file:///proc/self/fd/{os.memfd_create('vllm_dist')}", rank, local_rank

    return InMemory


def _ranks_executor() -> str:
    """vLLM's executor with a process a rank, which end with this one.

    They meet at a port instead of a file, which vLLM would never remove.
    """
    from vllm.utils.network_utils import get_distributed_init_method, get_loopback_ip, get_open_port
    from vllm.v1.executor import multiproc_executor

    multiproc_executor.get_file_store_init_method = lambda: get_distributed_init_method(
        get_loopback_ip(), get_open_port()
    )
    multiproc_executor.WorkerProc.worker_main = ranks.RankMain(_rank_main)
    return "mp"


def _rank_main(*args: Any, **kwargs: Any) -> None:
    from vllm.v1.executor.multiproc_executor import WorkerProc

    _do_not_count()
    WorkerProc.worker_main(*args, **kwargs)


def engine_args(settings: EngineSettings, on_gpu: bool) -> dict[str, Any]:
    """vLLM's own names and values, for an engine here and for a server (rlpost/verbs/serve.py)."""
    args: dict[str, Any] = {
        "model": str(settings.model),
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": True,
        "enforce_eager": settings.enforce_eager,
        "seed": settings.seed,
        "tensor_parallel_size": settings.tensor_parallel,
        "logprobs_mode": "processed_logprobs",  # log-probs of the distribution that is drawn from, after temperature
        "generation_config": "vllm",  # no top-p or top-k from the model's own file
        "disable_log_stats": True,
        "worker_extension_cls": WORKER_EXTENSION,
    }
    # vLLM, which knows the GPU, chooses how many prompt tokens a step takes.
    if on_gpu:
        return args | {"gpu_memory_utilization": settings.gpu_memory_utilization}
    return args | {
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30 / settings.tensor_parallel),  # of a rank
        "block_size": _CPU_BLOCK,
        # A prompt cut in two crashes a seeded request on CPU (vLLM rewinds its generator, which torch cannot do there).
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(_PREFILL_TOKENS, settings.max_model_len),
    }


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause garbage collection: importing vLLM creates millions of permanent objects, so collecting only costs time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _sockets() -> Iterator[None]:
    """A folder for the sockets by which ranks find each other. Once they have, nobody needs the sockets' names."""
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        os.environ["VLLM_RPC_BASE_PATH"] = folder
        try:
            yield
        finally:
            del os.environ["VLLM_RPC_BASE_PATH"]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set torch's threads; afterwards undo vLLM's replacement of `torch.set_num_threads` by a no-op."""
    set_num_threads = torch.set_num_threads
    set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
