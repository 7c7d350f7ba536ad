"""What test_families asks of a process that holds engines, one after another.

vLLM changes classes of transformers for the families that it runs by them, so that process is not the one whose PEFT is
the witness.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlpost.rollout.engine.in_place import _Merge
from rlpost.rollout.engine.protocol import Completion, Sampling, SwapReport
from rlpost.rollout.engine.settings import EngineSettings
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.types import Canary, ModelInput
from rlpost.weights.adapters import Adapter


@contextmanager
def _engine(folder: Path) -> Iterator[VllmEngine]:
    torch.set_num_threads(1)
    engine = VllmEngine(EngineSettings(folder, max_model_len=64, max_num_seqs=4, kv_cache_gib=0.02))
    try:
        yield engine
    finally:
        engine._engine.engine_core.shutdown()


def swap_and_sample(
    folder: Path, adapter: Adapter, canary: Canary, max_gap: float
) -> tuple[SwapReport, list[float], Completion]:
    """The swap's report, the canary's log-probs afterwards, and a sampled answer to the canary's first 20 tokens."""
    with _engine(folder) as engine:
        report = engine.swap(adapter, canary, max_gap)
        scores = engine.logprobs(canary.token_ids)
        engine.submit("a", ModelInput(canary.token_ids[:20]), Sampling(1.0, 24), 3)
        for _ in range(100):
            if done := engine.step():
                return report, scores, done[0][1]
    raise AssertionError("no answer in 100 steps")


def swap_with_heads_in_another_order(
    folder: Path, adapter: Adapter, canary: Canary, max_gap: float, unnoticed: bool
) -> SwapReport:
    """As in an engine that orders the rows of attention's query_key_value by kind, where the checkpoint does by head.

    `unnoticed`: the writer's look at the layout before the first write finds nothing. Each layer then computes with
    what was written, so probes hold.
    """
    into = _Merge.into

    def by_kind(merge: Any, value: torch.Tensor, parameter: str, *others: Any) -> None:
        into(merge, value, parameter, *others)
        looks = merge._update is None
        if parameter.endswith("query_key_value.weight") and not (looks and unnoticed):
            value.copy_(value.unflatten(0, (4, 3, -1)).transpose(0, 1).flatten(0, 2).clone())

    with pytest.MonkeyPatch.context() as patch, _engine(folder) as engine:
        patch.setattr(_Merge, "into", by_kind)
        return engine.swap(adapter, canary, max_gap)
