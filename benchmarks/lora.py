"""LoRA layers, forward and backward, against PEFT's, with SmolLM2-135M's shapes in bfloat16.

    python -m benchmarks.lora [--tokens 2048] [--threads 1] [--repeats 7]

PEFT's layers run unchanged (float32 adapters, activations cast by the layer) and under bfloat16 autocast. Layers that
share an input are one call here and one call per layer there. Claim: twice as fast.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from benchmarks.timing import Side, in_turns, ratio
from rlpost.learner.model.fused_layers import Projections

RANK = 32
SHAPES = {
    "q, k, v": (576, (576, 192, 192)),
    "o": (576, (576,)),
    "gate, up": (576, (1536, 1536)),
    "down": (1536, (576,)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in SHAPES:
        print(f"{name}, {args.tokens} tokens, load {os.getloadavg()[0]:.1f}")
        print(compare(name, args.tokens, args.repeats), flush=True)


class Layers(nn.Module):
    """Linear layers with the same input."""

    def __init__(self, inputs: int, outputs: tuple[int, ...]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(inputs, n, bias=False, dtype=torch.bfloat16) for n in outputs)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [linear(x) for linear in self.linears]


def compare(name: str, tokens: int, repeats: int) -> str:
    inputs, outputs = SHAPES[name]
    names = [f"linears.{k}" for k in range(len(outputs))]
    model: Any = get_peft_model(Layers(inputs, outputs), LoraConfig(r=RANK, target_modules=names))
    fused = Projections(*model.base_model.model.linears)
    x = torch.randn(tokens, inputs).bfloat16().requires_grad_()
    slopes = [torch.randn(tokens, n).bfloat16() for n in outputs]
    joined = torch.cat(slopes, dim=1)

    def peft(autocast: bool) -> Callable[[], int]:
        def run() -> int:
            with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
                found = model(x)
            torch.autograd.backward(found, slopes)
            return tokens

        return run

    def ours() -> int:
        fused(x).backward(joined)
        return tokens

    times = in_turns(
        {"ours": Side(ours), "peft": Side(peft(False)), "peft, autocast": Side(peft(True))},
        repeats,
        warm_ups=2,
    )
    lines = [f"  {timing} a token" for timing in times.values()]
    lines += [f"  {n} / ours: {ratio(times[n], times['ours'])}" for n in times if n != "ours"]
    return "\n".join([*lines, "  2 is wanted"])


if __name__ == "__main__":
    main()
