"""The head's log-probs and entropy, forward and backward, against full float32 logits: time and peak memory.

    python -m benchmarks.linear_logprob [--words 49152 151936] [--positions 512] [--hidden 576]

Claim: a twentieth of the memory at the same speed or faster. Memory is the peak of the pass's allocations without its
inputs, as counted by PyTorch's profiler; time is measured without the profiler.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Side, in_turns, ratio
from rlpost.kernels.linear_logprob import linear_logprob, linear_logprob_reference

Head = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for words in args.words:
        print(f"{words} words, load {os.getloadavg()[0]:.1f}")
        print(compare(args.positions, args.hidden, words, args.repeats), flush=True)


def compare(positions: int, hidden: int, words: int, repeats: int) -> str:
    def run(head: Head) -> Callable[[], int]:
        return lambda: one_pass(head, positions, hidden, words)

    sides: dict[str, Callable[[], int]] = {
        "tiles": run(linear_logprob),
        "full": run(linear_logprob_reference),
    }
    times = in_turns({name: Side(side) for name, side in sides.items()}, repeats)
    peaks = {name: peak_bytes(side) for name, side in sides.items()}
    return "\n".join(
        [
            *(f"  {timing} a position, peak {peaks[name] / 2**20:.1f} MiB" for name, timing in times.items()),
            f"  time, tiles / full: {ratio(times['tiles'], times['full'])}; at most 1 is wanted",
            f"  memory, full / tiles: {peaks['full'] / peaks['tiles']:.1f}; 20 is wanted",
        ]
    )


def one_pass(head: Head, positions: int, hidden: int, words: int) -> int:
    hidden_NH, weight_VH, targets_N = inputs(positions, hidden, words)
    logprobs_N, entropy_N = head(hidden_NH, weight_VH, targets_N, 0.9)
    (logprobs_N + 0.01 * entropy_N).sum().backward()
    return positions


_INPUTS: dict[tuple[int, int, int], tuple[Tensor, Tensor, Tensor]] = {}


def inputs(positions: int, hidden: int, words: int) -> tuple[Tensor, Tensor, Tensor]:
    """bfloat16 hidden states and head, the same in every call."""
    key = (positions, hidden, words)
    if key not in _INPUTS:
        generator = torch.Generator().manual_seed(0)
        hidden_NH = torch.randn(positions, hidden, generator=generator).bfloat16().requires_grad_()
        weight_VH = (torch.randn(words, hidden, generator=generator) / hidden**0.5).bfloat16()
        _INPUTS[key] = hidden_NH, weight_VH, torch.randint(words, (positions,), generator=generator)
    return _INPUTS[key]


def peak_bytes(side: Callable[[], int]) -> int:
    """The peak of the memory that `side` allocates and has not freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        side()
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
