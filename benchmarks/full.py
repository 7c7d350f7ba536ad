"""Full fine-tuning beside LoRA in the learner: processor seconds of a step of the same batch, and peak memory.

    python -m benchmarks.full [--models tiny smollm2-135m] [--dtypes float32] [--threads 1] [--repeats 3]

A step is the forward and backward pass of benchmarks.learner's batch, cut to ROWS rows, and AdamW's step. LoRA has rank
32 on all linear layers, once with the fused layers that a run uses, and once with transformers' own, which full
fine-tuning always uses. Memory is the resident peak of a process that takes two steps of one kind; `artefact` is what a
swap sends and adapter/ holds. Seconds are the processor's, which other work on the machine hardly changes.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.learner import BUDGET, RANK, rows
from benchmarks.subjects import Case, run_cases
from benchmarks.timing import Timing, ratio
from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import AdapterKind, Dtype, LoraConfig
from rlpost.learner.group import learner_environment
from rlpost.learner.model import actor_critic
from rlpost.learner.model.packing import collate, plan_micro_batches, slot_starts
from rlpost.weights.models import resolve

ROWS = 8
KINDS = {
    "lora": (AdapterKind.lora, True),
    "lora, not fused": (AdapterKind.lora, False),
    "full": (AdapterKind.full, False),
}


def main() -> None:
    run_cases(__doc__ or "", compare, ["tiny"], ("float32",), lambda n: learner_environment(n, 0))


def compare(case: Case) -> str:
    torch.set_num_threads(case.threads)
    steps = {name: step_of(case, name)[0] for name in KINDS}
    rounds = [{name: seconds(step) for name, step in steps.items()} for _ in range(1 + case.repeats)][1:]
    times = {name: Timing(name, tuple(each[name] for each in rounds)) for name in steps}
    lines = [f"  a step, {timing}" for timing in times.values()]
    lines += [f"  full / {name}: {ratio(times['full'], times[name])}" for name in KINDS if name != "full"]
    for name in ("lora", "full"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak, size = pool.submit(memory, case, name).result()
        lines.append(f"  {name}: resident peak {peak / 2**20:.0f} MiB, artefact {size / 2**20:.1f} MiB")
    return "\n".join(lines)


def seconds(step: Callable[[], object]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def memory(case: Case, name: str) -> tuple[int, int]:
    """The resident peak of this process after two steps, and the size of the trained parameters; both in bytes."""
    torch.set_num_threads(case.threads)
    step, size = step_of(case, name)
    step()
    step()
    # Not getrusage, whose maximum a process inherits from the one that started it.
    [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(peak), size


def step_of(case: Case, name: str) -> tuple[Callable[[], None], int]:
    kind, fused = KINDS[name]
    lora = LoraConfig(kind=kind, rank=RANK, alpha=2.0 * RANK)
    model = actor_critic.build(resolve(case.model), Dtype[case.dtype], lora, 0, (POLICY,), None)
    if fused:
        model.fuse()
    trained = model.parameters_of(POLICY)
    optimizer = torch.optim.AdamW(trained, lr=1e-6, foreach=True)
    batch = rows(500)[:ROWS]
    [plan] = plan_micro_batches(batch, range(len(batch)), BUDGET, 1)
    micros = [collate(batch, slot_starts(batch), groups) for groups in plan]

    def step() -> None:
        optimizer.zero_grad()
        for micro in micros:
            (-model(micro, (POLICY,), 1.0).of(POLICY).mean()).backward()
        optimizer.step()

    return step, 4 * sum(p.numel() for p in trained)


if __name__ == "__main__":
    main()
