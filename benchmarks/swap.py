"""A merged hot swap with its proof, against vLLM's own `reload_weights` with the same merged weights.

    python -m benchmarks.swap [--models tiny smollm2-135m] [--dtypes float32 bfloat16] [--threads 1]

All sides end with the same live weights; the last line says whether the engine then gives a canary the same log-probs.

    swap             merge, write in place, fingerprint, probe every layer, drop the prefix cache, score a canary
    write            the same without prefix cache and canary
    write full       the same for whole parameters, all of the model's (lora.kind=full)
    reload           vLLM's loader gets the adapted modules only (merged as in a swap); it proves nothing
    reload all       the same, and every other weight of the checkpoint
    canary alone     the time of the swap's proof on 32 tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.subjects import Case, Policy, prompts, run_cases
from benchmarks.timing import Side, in_turns, ratio
from rlpost.config.adapter_kinds import FULL
from rlpost.rollout.engine.protocol import SwapReport
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import weight_update

ANY_GAP = 10.0  # the canary is scored here, but its gap is checked by benchmarks.decode


def main() -> None:
    run_cases(__doc__ or "", compare, ["tiny", "smollm2-135m"])


def compare(case: Case) -> str:
    settings = case.settings(max_num_seqs=8, kv_cache_gib=0.25)
    engine = VllmEngine(settings)
    policy = Policy.random(settings.model, case.dtype)
    canary = policy.canary(sum(prompts(settings.model, 4), ()))
    full = whole_weights(settings.model)
    reports: list[SwapReport] = []
    scores: dict[str, list[float]] = {}

    def in_engine(method: Any, *args: Any) -> int:
        engine._engine.collective_rpc(method, args=args)
        return 1

    def swap() -> int:
        reports.append(engine.swap(policy.adapter, canary, ANY_GAP))
        return 1

    def scored(name: str) -> int:
        engine._engine.reset_prefix_cache()
        scores[name] = engine.logprobs(canary.token_ids)
        return 1

    sides = {
        "swap": Side(swap),
        # The other kind's parameters return to the base first, which is not timed.
        "write": Side(
            lambda: in_engine("rlpost_write", policy.adapter),
            lambda: in_engine("rlpost_write", policy.adapter),
        ),
        "write full": Side(lambda: in_engine("rlpost_write", full)),
        "reload": Side(lambda: in_engine(reload, settings.model, policy.adapter, False)),
        "reload all": Side(lambda: in_engine(reload, settings.model, policy.adapter, True)),
        "canary alone": Side(lambda: scored("canary alone")),
    }
    scored("base")
    times = in_turns(sides, case.repeats, warm_ups=2)
    for name in ("write", "reload", "reload all"):
        engine._engine.collective_rpc("rlpost_write", args=(None,))
        sides[name].run()
        scored(name)
    last = reports[-1]
    return "\n".join(
        [
            *(f"  {timing}" for timing in times.values()),
            *(
                f"  {a} / {b}: {ratio(times[a], times[b])}"
                for a, b in (
                    ("write full", "write"),
                    ("write", "reload"),
                    ("write", "reload all"),
                    ("swap", "reload"),
                )
            ),
            f"  {last.modules_bound} of {last.modules_expected} modules bound, rounding loss {last.rounding_loss:.3g}",
            *(
                f"  canary after {name}: {_farthest(scores[name], scores['write']):.2g} from write's at most"
                for name in ("base", "reload", "reload all")
            ),
        ]
    )


def whole_weights(folder: Path) -> Adapter:
    """All parameters of a model, each a thousandth larger."""
    tensors = {name: 1.001 * tensor.float() for name, tensor in BaseWeights(folder).items()}
    return Adapter.create({"peft_type": FULL, "target_modules": "all-linear"}, tensors, 1)


def _farthest(these: list[float], those: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(these, those, strict=True))


def reload(worker: Any, folder: Path, adapter: Adapter, everything: bool) -> None:
    """Inside the worker: pass merged weights to vLLM under their names in the checkpoint."""
    weights = merged(folder, adapter, worker.model_config.dtype, everything)
    worker.model_runner.reload_weights(weights_iterator=weights)


def merged(
    folder: Path, adapter: Adapter, dtype: torch.dtype, everything: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    base = BaseWeights(folder)
    update = weight_update(adapter, base)
    yield from ((name, weight.to(dtype)) for name, weight in update)
    if everything:
        yield from ((name, weight.to(dtype)) for name, weight in base.items() if name not in update.shapes)


if __name__ == "__main__":
    main()
