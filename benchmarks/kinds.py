"""Every kind of adapter with its default size: a proven swap of an update of equal size, in one engine.

python -m benchmarks.kinds [--models tiny smollm2-135m] [--dtypes float32 bfloat16]

numbers        trained numbers
update         norm of the change over the norm of the base, over all adapted weights; noise is scaled towards it
swap s         merge, write, fingerprint, prove every layer, score the canary
canary gap     mean |engine - plain PEFT| log-prob on the canary, in nats; PEFT computes as the learner does
rounding loss  share of the update that the engine's precision rounds away
"""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from benchmarks.subjects import Case, Policy, prompts, run_cases
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.compose import compose
from rlpost.config.schema import AdapterKind, LoraConfig
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import weight_update

ANY_GAP = 10.0
UPDATE = 0.02  # like the updates of docs/results/adapters.md
ROUNDS = 4  # of scaling the noise; most kinds are linear in it near their start
FIRST_NOISE = 1e-3


def main() -> None:
    run_cases(__doc__ or "", compare, ["tiny"])


def compare(case: Case) -> str:
    settings = case.settings(max_num_seqs=8, kv_cache_gib=0.25)
    engine, base = VllmEngine(settings), BaseWeights(settings.model)
    tokens = sum(prompts(settings.model, 4), ())
    lines = [
        f"  {'kind':>12} {'numbers':>9} {'update':>7} {'swap s':>7} {'canary gap':>10} {'rounding loss':>13}"
    ]
    for kind in (kind for kind in AdapterKind if not TABLE[kind].whole):
        lora = compose(["experiment=generalpoints_ppo", f"lora.kind={kind.value}"]).lora
        try:
            policy, size = moved(lora, settings.model, case.dtype, base)
            report = engine.swap(policy.adapter, policy.canary(tokens), ANY_GAP)
        except Exception as error:  # the table says which kinds cannot
            lines.append(f"  {kind.value:>12} {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            continue
        numbers = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
        lines.append(
            f"  {kind.value:>12} {numbers:>9} {size:>7.2%} {report.seconds:>7.2f} {report.canary_gap:>10.2g}"
            f" {report.rounding_loss:>13.2g}"
        )
    return "\n".join(lines)


def moved(lora: LoraConfig, folder: Any, dtype: str, base: BaseWeights) -> tuple[Policy, float]:
    """The bare model with an adapter of the kind, moved from its start by noise until the update is near UPDATE."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config = PeftConfig.from_peft_type(target_modules="all-linear", **TABLE[lora.kind].peft_settings(lora))
    peft = get_peft_model(model, config).eval()
    trained = [p for p in peft.parameters() if p.requires_grad]
    start, noise = [p.detach().clone() for p in trained], [torch.randn_like(p) for p in trained]
    scale = FIRST_NOISE
    for _ in range(ROUNDS):
        for p, s, n in zip(trained, start, noise, strict=True):
            p.data.copy_(s + scale * n)
        tensors = get_peft_model_state_dict(peft, save_embedding_layers=False)
        adapter = Adapter.create(peft.peft_config["default"].to_dict(), tensors, 1)
        size = update_size(adapter, base)
        if 0.8 < size / UPDATE < 1.25:
            break
        scale *= min(max(UPDATE / size, 0.01), 100.0) if size else 100.0
    return Policy(peft, adapter), size


def update_size(adapter: Adapter, base: BaseWeights) -> float:
    """||W - W0|| / ||W0|| over the parameters that the adapter changes."""
    changed = stored = 0.0
    for name, weight in weight_update(adapter, base):
        before = base[name].double()
        changed += float((weight.double() - before).square().sum())
        stored += float(before.square().sum())
    return math.sqrt(changed / stored)


if __name__ == "__main__":
    main()
