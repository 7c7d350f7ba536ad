"""Full fine-tuning beside LoRA in the learner: seconds of a step of the same batch, and peak memory.

    python -m benchmarks.full [--models tiny smollm2-135m] [--dtypes float32] [--threads 1] [--repeats 3]

A step is the forward and backward pass of benchmarks.learner's batch, cut to ROWS rows, and AdamW's step. LoRA has rank
32 on all linear layers, once with the fused layers that a run uses, and once with transformers' own, which full
fine-tuning always uses. Memory is the resident peak of a process that takes two steps of one kind; `artefact` is what a
swap sends and adapter/ holds.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.learner import BUDGET, RANK, rows
from benchmarks.subjects import Case, run_cases
from benchmarks.timing import Side, in_turns, ratio
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
    times = in_turns({name: Side(step_of(case, name)[0]) for name in KINDS}, case.repeats)
    lines = [f"  a step, {timing}" for timing in times.values()]
    lines += [f"  full / {name}: {ratio(times['full'], times[name])}" for name in KINDS if name != "full"]
    for name in ("lora", "full"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak, size = pool.submit(memory, case, name).result()
        lines.append(f"  {name}: resident peak {peak / 2**20:.0f} MiB, artefact {size / 2**20:.1f} MiB")
    return "\n".join(lines)


def memory(case: Case, name: str) -> tuple[int, int]:
    """The resident peak of this process after two steps, and the size of the trained parameters; both in bytes."""
    torch.set_num_threads(case.threads)
    step, size = step_of(case, name)
    step()
    step()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, size


def step_of(case: Case, name: str) -> tuple[Callable[[], int], int]:
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

    def step() -> int:
        optimizer.zero_grad()
        for micro in micros:
            (-model(micro, (POLICY,), 1.0).of(POLICY).mean()).backward()
        optimizer.step()
        return 1

    return step, 4 * sum(p.numel() for p in trained)


if __name__ == "__main__":
    main()
