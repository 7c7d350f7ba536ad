"""The learner's forward and backward pass against PEFT and transformers: padded rows, full logits.

    python -m benchmarks.learner [--models smollm2-135m] [--dtypes bfloat16] [--threads 2]

GROUPS prompts of 150 tokens with 8 answers of 64 tokens each, adapters of rank 32 on all linear layers; the log-probs
of the answers and the gradient of their weighted sum are computed. Claim: 8 times the tokens per second. Both sides are
given every token of every row (1,712 per group, of which 662 are distinct). The share of the GEMM peak counts only the
necessary work of our side: four flops per weight and distinct token for the frozen body, six for the adapters, four per
weight and answer token for the head, without attention.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.subjects import Case, run_cases
from benchmarks.timing import Side, in_turns, ratio
from rlpost.algorithms import roles
from rlpost.config.schema import Dtype, LoraConfig
from rlpost.learner.group import learner_environment
from rlpost.learner.model import actor_critic
from rlpost.learner.model.packing import Row, collate, plan_micro_batches, slot_starts
from rlpost.learner.model.peft_weights import PeftWeights
from rlpost.weights.models import resolve

GROUPS, ANSWERS, PROMPT, ANSWER = 2, 8, 150, 64
BUDGET = 4096
RANK = 32


def main() -> None:
    run_cases(__doc__ or "", compare, ["smollm2-135m"], ("bfloat16",), lambda n: learner_environment(n, 0))


def rows(vocabulary: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(GROUPS):
        prompt = torch.randint(vocabulary, (PROMPT,), generator=generator).tolist()
        for _ in range(ANSWERS):
            answer = torch.randint(vocabulary, (ANSWER,), generator=generator).tolist()
            found.append(Row(prompt + answer, [0] * PROMPT + [1] * ANSWER))
    return found


def compare(case: Case) -> str:
    torch.set_num_threads(case.threads)
    batch = rows(500)
    weights = torch.randn(len(batch) * ANSWER, generator=torch.Generator().manual_seed(1))
    ours, flops = learner(case, batch, weights)
    times = in_turns({"ours": Side(ours), "peft": Side(peft(case, batch, weights))}, case.repeats)
    peak = gemm_peak(getattr(torch, case.dtype))
    tokens = sum(len(row.token_ids) for row in batch)
    share = flops / tokens / times["ours"].median / peak
    return "\n".join(
        [
            *(f"  {name}: {1 / timing.median:.0f} tokens/s" for name, timing in times.items()),
            f"  speed, ours / peft: {ratio(times['peft'], times['ours'])}; 8 is wanted",
            f"  {share:.0%} of a GEMM peak of {peak / 1e12:.2f} TFLOP/s; 40% is wanted",
        ]
    )


def learner(case: Case, batch: list[Row], weights: torch.Tensor) -> tuple[Callable[[], int], float]:
    """The function to time, and its necessary floating-point operations."""
    lora = LoraConfig(rank=RANK, alpha=2.0 * RANK)
    model = actor_critic.build(resolve(case.model), Dtype[case.dtype], lora, 0, (roles.POLICY,), None)
    model.fuse()
    [plan] = plan_micro_batches(batch, range(len(batch)), BUDGET, 1)
    micros = [collate(batch, slot_starts(batch), groups) for groups in plan]

    def run() -> int:
        for micro in micros:
            logprobs_N = model(micro, (roles.POLICY,), 1.0).of(roles.POLICY)
            (weights[micro.slots_N] * logprobs_N).sum().backward()
        model.zero_grad()
        return sum(len(row.token_ids) for row in batch)

    assert isinstance(model.weights, PeftWeights), "LoRA is PEFT's"
    distinct = sum(len(micro.input_ids_T) for micro in micros)
    frozen = sum(layer.base_layer.weight.numel() for layer in model.weights.layers)
    adapter = sum(p.numel() for p in model.parameters_of(roles.POLICY))
    flops = distinct * (4 * frozen + 6 * adapter) + 4 * model.head.weight.numel() * len(weights)
    return run, float(flops)


def peft(case: Case, batch: list[Row], weights: torch.Tensor) -> Callable[[], int]:
    """One group at a time, with one row per answer."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(resolve(case.model), dtype=getattr(torch, case.dtype))
    config = PeftConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config).train()
    ids = torch.tensor([row.token_ids for row in batch])

    def run() -> int:
        for part, weight in zip(ids.split(ANSWERS), weights.split(ANSWERS * ANSWER), strict=True):
            logits = model(input_ids=part, attention_mask=torch.ones_like(part), use_cache=False).logits
            table = torch.log_softmax(logits[:, :-1].float(), dim=-1)
            logprobs = table.gather(2, part[:, 1:, None])[:, -ANSWER:, 0]
            (weight * logprobs.flatten()).sum().backward()
        model.zero_grad()
        return ids.numel()

    return run


def gemm_peak(dtype: torch.dtype, size: int = 2048, repeats: int = 20) -> float:
    """Floating-point operations per second of the fastest of some square products."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


if __name__ == "__main__":
    main()
