"""A GPU that engines and a learner rank share, at once or in turns (rollout.sleep), by hand."""

from __future__ import annotations

import pytest

from rlpost.config.schema import Config, Dtype
from rlpost.memory.plan import memory_plan, savings
from rlpost.memory.shared_gpu import engines_beside_a_rank, least
from tests.unit.memory.models import COUNT, settings, shape
from tests.unit.memory.test_memory_plan import LORA_COUNT, part

GPU = 10**6
WEIGHTS = 4 * COUNT
KEPT = WEIGHTS + 4 * LORA_COUNT + 4 * LORA_COUNT + 8 * LORA_COUNT  # base, policy, gradients, moments
STEP = 4 * LORA_COUNT  # certain: the optimizer's temporaries
SWAP = 4 * LORA_COUNT + (2 * 4 + 4) * 8 * 16  # the adapter, and the largest layer (16, 8)


def on_one_gpu(sleep: bool = True) -> Config:
    cfg = settings()
    cfg.rollout.gpus = cfg.learner.gpus = 0.5
    cfg.rollout.gpu_memory_utilization, cfg.rollout.sleep = 0.3, sleep
    return cfg


def test_a_rank_keeps_what_it_trains_and_an_engine_what_a_swap_needs() -> None:
    plan = memory_plan(on_one_gpu(), shape())
    assert plan.named("learner rank").kept_size() == KEPT
    assert plan.named("learner rank").device_size(certain_only=True) == KEPT + STEP
    assert plan.named("rollout worker").kept_size() == SWAP


@pytest.mark.parametrize(
    ("sleep", "share", "taken"),
    [
        (False, 0.3, 300_000 + KEPT + STEP),
        (True, 0.3, 300_000 + KEPT),  # the engine's turn
        (True, 0.001, KEPT + STEP + SWAP),  # the learner's
    ],
)
def test_turns_do_not_add_up(sleep: bool, share: float, taken: int) -> None:
    cfg = on_one_gpu(sleep)
    cfg.rollout.gpu_memory_utilization = share
    assert least(memory_plan(cfg, shape()), cfg, GPU) == taken


def test_all_engines_of_a_gpu_count() -> None:
    cfg = on_one_gpu()
    cfg.rollout.workers, cfg.rollout.gpus = 3, 0.25
    assert engines_beside_a_rank(cfg) == 2
    assert least(memory_plan(cfg, shape()), cfg, GPU) == 2 * 300_000 + KEPT
    cfg.rollout.workers = 1
    assert engines_beside_a_rank(cfg) == 1


@pytest.mark.parametrize(
    ("rollout", "learner", "engines"), [(0.7, 0.3, 1), (1.0, 1.0, 0), (0.0, 0.5, 0), (0.5, 0.0, 0)]
)
def test_shares_above_a_whole_gpu_are_of_two(rollout: float, learner: float, engines: int) -> None:
    cfg = on_one_gpu()
    cfg.rollout.gpus, cfg.learner.gpus = rollout, learner
    assert engines_beside_a_rank(cfg) == engines


@pytest.mark.parametrize(("dtype", "each"), [(Dtype.float32, 4), (Dtype.bfloat16, 2)])
def test_a_sleeping_engine_has_its_weights_on_the_host(dtype: Dtype, each: int) -> None:
    cfg, awake = on_one_gpu(), on_one_gpu(sleep=False)
    cfg.dtype = awake.dtype = dtype
    cfg.rollout.workers = awake.rollout.workers = 2
    asleep, never = memory_plan(cfg, shape()), memory_plan(awake, shape())
    assert part(asleep.named("rollout worker"), "weights while it sleeps") == each * COUNT
    assert asleep.size(certain_only=True) - never.size(certain_only=True) == 2 * each * COUNT
    assert asleep.size() - never.size() == 2 * 2 * each * COUNT
    [saved] = [each for each in savings(cfg, shape()) if each.words == "rollout.sleep=false"]
    assert saved.size == 2 * 2 * each * COUNT
