"""What vLLM is started with on a CPU and on a GPU; neither vLLM nor a GPU is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlpost.rollout.engine.settings import EngineSettings, engine_args

SETTINGS = EngineSettings(Path("model"), max_model_len=1024, kv_cache_gib=0.5, gpu_memory_utilization=0.3)
ON_CPU = {"block_size", "enable_chunked_prefill", "kv_cache_memory_bytes", "max_num_batched_tokens"}


def arguments(on_gpu: bool, **changed: Any) -> dict[str, Any]:
    return engine_args(EngineSettings(**{**vars(SETTINGS), **changed}), on_gpu)


def test_a_prompt_stays_whole_on_a_cpu() -> None:
    found = arguments(on_gpu=False)
    assert found["enable_chunked_prefill"] is False
    assert found["kv_cache_memory_bytes"] == 512 * 2**20
    assert "gpu_memory_utilization" not in found


@pytest.mark.parametrize(("longest", "tokens"), [(1024, 8192), (8192, 8192), (16384, 16384)])
def test_the_longest_prompt_fits_a_step_on_a_cpu(longest: int, tokens: int) -> None:
    assert arguments(on_gpu=False, max_model_len=longest)["max_num_batched_tokens"] == tokens


def test_a_gpu_decides_for_itself_how_prompts_are_cut() -> None:
    found = arguments(on_gpu=True)
    assert not ON_CPU & set(found)
    assert found["gpu_memory_utilization"] == 0.3


def test_all_else_is_the_same() -> None:
    cpu, gpu = arguments(on_gpu=False), arguments(on_gpu=True)
    assert set(cpu) - set(gpu) == ON_CPU
    assert set(gpu) - set(cpu) == {"gpu_memory_utilization"}
    assert all(cpu[name] == gpu[name] for name in set(cpu) & set(gpu))


@pytest.mark.parametrize("on_gpu", [True, False])
def test_sleep_mode_is_asked_for_wherever_the_setting_is(on_gpu: bool) -> None:
    """On a CPU too: vLLM refuses it there at its start, and a worker that is not told would ignore `sleep`."""
    assert arguments(on_gpu, sleep=True)["enable_sleep_mode"] is True
    assert "enable_sleep_mode" not in arguments(on_gpu)


def test_the_cache_of_an_engine_is_divided_between_its_ranks() -> None:
    found = arguments(on_gpu=False, tensor_parallel=4)
    assert found["tensor_parallel_size"] == 4
    assert found["kv_cache_memory_bytes"] == 128 * 2**20
