"""The settings of a vLLM engine and the environment of its process. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
