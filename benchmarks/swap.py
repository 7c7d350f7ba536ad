"""A merged hot swap with its proof against vLLM's own `reload_weights` of the same merged weights.

    python -m benchmarks.swap [--models tiny smollm2-135m] [--dtypes float32 bfloat16] [--threads 1]

Both end with the same weights live. The swap also fingerprints, probes every layer it wrote, drops the prefix
cache and scores a canary of 32 tokens; the reload proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.subjects import Case, Policy, prompts, run_cases
from benchmarks.timing import Side, in_turns, ratio
from rlpost.rollout.engine.protocol import SwapReport
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.weights.adapters import Adapter, merged_weight

ANY_GAP = 10.0  # the canary is scored, but its gap is benchmarks.decode's business


def main() -> None:
    run_cases(__doc__ or "", compare, ["tiny", "smollm2-135m"])


def compare(case: Case) -> str:
    settings = case.settings(max_num_seqs=8, kv_cache_gib=0.25)
    engine = VllmEngine(settings)
    policy = Policy.random(settings.model, case.dtype)
    canary = policy.canary(sum(prompts(settings.model, 4), ()))
    reports: list[SwapReport] = []

    def swap() -> int:
        reports.append(engine.swap(policy.adapter, canary, ANY_GAP))
        return 1

    def reload() -> int:
        engine._engine.collective_rpc(reload_merged, args=(settings.model, policy.adapter))
        return 1

    def score() -> int:
        engine.score(canary.token_ids)
        return 1

    sides = {"swap": Side(swap), "reload": Side(reload), "canary alone": Side(score)}
    times = in_turns(sides, case.repeats, warm_ups=2)
    last = reports[-1]
    return "\n".join(
        [
            *(f"  {timing}" for timing in times.values()),
            f"  swap / reload: {ratio(times['swap'], times['reload'])}",
            f"  {last.modules_bound} of {last.modules_expected} modules bound, rounding loss {last.rounding_loss:.3g}",
        ]
    )


def reload_merged(worker: Any, folder: Path, adapter: Adapter) -> None:
    """Inside the worker: hand vLLM every parameter of the checkpoint, adapted modules merged."""
    worker.model_runner.reload_weights(weights_iterator=merged(folder, adapter, worker.model_config.dtype))


def merged(folder: Path, adapter: Adapter, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    adapted = set(adapter.modules)
    for name, weight in load_file(folder / "model.safetensors").items():  # memory-mapped
        module = name.removesuffix(".weight")
        yield name, (merged_weight(adapter, module, weight) if module in adapted else weight).to(dtype)


if __name__ == "__main__":
    main()
