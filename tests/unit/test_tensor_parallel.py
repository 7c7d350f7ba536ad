"""What rollout.tensor_parallel claims, and what it refuses before anything starts. No vLLM, no Ray."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

from rlpost.cluster.ray_cluster import Needs
from rlpost.config.schema import Config
from rlpost.errors import ConfigError
from rlpost.rollout.engine import ranks
from rlpost.rollout.engine.settings import engine_environment
from rlpost.validate.checks import validate
from rlpost.validate.parallel import check_tensor_parallel

SIZES: dict[str, Any] = {
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 100,  # padded to 128
}


def config(count: int, gpus: float = 0.0) -> Config:
    cfg = Config(model="m", env="generalpoints")
    cfg.rollout.tensor_parallel, cfg.rollout.gpus = count, gpus
    return cfg


def check(ranks: int, folder: Path, **changed: Any) -> None:
    (folder / "config.json").write_text(json.dumps(SIZES | changed))
    check_tensor_parallel(config(ranks), folder)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_sizes_that_divide_are_taken_and_key_value_heads_may_be_repeated(ranks: int, tmp_path: Path) -> None:
    check(ranks, tmp_path)


@pytest.mark.parametrize(
    ("ranks", "changed", "named"),
    [
        (5, {}, "12 attention heads.*2 key-value heads.*width 24.*100 .padded to 128"),
        (3, {"num_key_value_heads": 3}, r"has a vocabulary of 100 .padded to 128., which"),
        (4, {"num_key_value_heads": 6}, "has 6 key-value heads, which"),
        (4, {"intermediate_size": 30}, "has an MLP of width 30, which"),
    ],
)
def test_sizes_that_do_not_divide_are_named(
    ranks: int, changed: dict[str, int], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)rollout\.tensor_parallel={ranks}.*{named}"):
        check(ranks, tmp_path, **changed)


def test_a_share_of_a_gpu_for_each_rank_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.gpus=0\.5\n.*a GPU of its own"):
        validate(config(2, gpus=0.5))


def test_every_rank_claims_its_cpus_and_gpus() -> None:
    cfg = config(4, gpus=1.0)
    cfg.rollout.workers, cfg.rollout.cpus, cfg.learner.cpus = 2, 0.5, 1.0
    assert Needs.of_engines(cfg) == Needs(cpus=4.0, gpus=8.0)
    assert Needs.of(cfg) == Needs(cpus=5.0, gpus=8.0)


def test_ranks_are_spawned_and_not_bound_to_memory_nodes() -> None:
    one, two = (engine_environment(1, True, count) for count in (1, 2))
    assert one.items() < two.items()
    assert two["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert two["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_the_names_of_mapped_memory_are_found_and_go_and_the_memory_stays() -> None:
    before = ranks.shared_memory()
    lock = multiprocessing.get_context("spawn").Lock()
    memory = SharedMemory(create=True, size=64)
    try:
        names = ranks.shared_memory() - before
        assert sorted(path.name[:4] for path in names) == ["psm_", "sem."]
        ranks.forget(names)
        assert not any(path.exists() for path in names)
        assert lock.acquire(timeout=1)
        memory.buf[0] = 7
    finally:
        for path in names:
            path.touch()  # or Python would miss them at its end
        memory.close()
        memory.unlink()
