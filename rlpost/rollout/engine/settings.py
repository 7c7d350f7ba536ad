"""The settings of a vLLM engine, also in vLLM's words, and the environment of its process. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER_EXTENSION = (
    "rlpost.rollout.engine.swap.SwapWorker"  # mixed into vLLM's worker class, which loads it by name
)
# Tokens per KV block. Prompts share whole blocks only, and the CPU kernels need multiples of 32.
_CPU_BLOCK = 32
PREFILL_TOKENS = 8192  # prompt tokens per engine step on CPU, where prompts stay whole


def engine_environment(threads: int, enforce_eager: bool, tensor_parallel: int = 1) -> dict[str, str]:
    """Environment variables for a process that will hold an engine. `threads` are those of one rank.

    The OpenMP variables count only if they are set before torch is imported there (Ray: `runtime_env={"env_vars":
    ...}`), the others only before vllm is imported; `VllmEngine` sets those that are unset.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in this process
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads sleep; spinning ones take the cores of working threads
        "KMP_BLOCKTIME": "0",  # the same for Intel's OpenMP
    }
    if enforce_eager:
        # Even an eager vLLM compiles a helper of its sampler, which alone delays the first batch by 15 s.
        environment["TORCHDYNAMO_DISABLE"] = "1"
    if tensor_parallel > 1:
        environment["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # a fork of a process with threads may hang
        # vLLM would bind each rank to a NUMA node of its own, and fails where there are fewer.
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        # Longer messages take a socket. The default needs 160 MiB of shared memory a queue; containers have 64.
        environment["VLLM_MQ_MAX_CHUNK_BYTES_MB"] = "1"
    return environment


@dataclass(frozen=True)
class EngineSettings:
    """The settings that a vLLM engine starts with; sizes as in `rlpost.config.schema.RolloutConfig`."""

    model: Path  # folder with config, tokenizer and *.safetensors
    dtype: str = "float32"  # or bfloat16
    max_model_len: int = 1024
    max_num_seqs: int = 128
    kv_cache_gib: float = 1.0  # on CPU, all ranks together
    gpu_memory_utilization: float = 0.4  # on GPU
    threads: int = 1  # compute threads of a rank on CPU
    enforce_eager: bool = True
    base: str = "stored"  # or nf4: `lora.base`
    seed: int = 0  # seed of vLLM itself; every request brings its own
    tensor_parallel: int = 1  # ranks that share each layer; from 2, each is a process of its own
    sleep: bool = False  # whether `VllmEngine.sleep` will be used; on a GPU alone


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
    # On a CPU too, where vLLM then refuses to start; a worker there would only ignore `sleep`.
    if settings.sleep:
        args["enable_sleep_mode"] = True
    # vLLM, which knows the GPU, chooses how many prompt tokens a step takes.
    if on_gpu:
        return args | {"gpu_memory_utilization": settings.gpu_memory_utilization}
    return args | {
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30 / settings.tensor_parallel),  # of a rank
        "block_size": _CPU_BLOCK,
        # A prompt cut in two crashes a seeded request on CPU (vLLM rewinds its generator, which torch cannot do there).
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(PREFILL_TOKENS, settings.max_model_len),
    }
