"""Starts vLLM in this process. Only this file imports vllm.

With tensor_parallel above 1, vLLM starts a process a rank, which ends with this one; this one then only schedules.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rlpost.rollout.engine import ranks
from rlpost.rollout.engine.settings import EngineSettings, engine_args, engine_environment


@dataclass(frozen=True)
class Vllm:
    """The few names of vLLM that are used after the start."""

    SamplingParams: Any
    RequestOutputKind: Any
    tokens_input: Any


def start(settings: EngineSettings) -> tuple[Any, Vllm]:
    """The engine and the names. Raises whatever vLLM raises."""
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
    return engine, Vllm(SamplingParams, RequestOutputKind, tokens_input)


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
