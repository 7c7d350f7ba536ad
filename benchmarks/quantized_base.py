"""The learner on a base in NF4 (lora.base=nf4) against the stored base: memory and time of a forward and backward pass.

    python -m benchmarks.quantized_base [--models smollm2-135m] [--dtypes bfloat16 float32] [--threads 2]

The batch is that of `benchmarks.learner`. Claim: the linear layers take a quarter of bfloat16's memory, and
a pass takes at most a tenth longer. Memory is the process's own (RssAnon: no file mappings), less what it had after its
imports; each kind of base has a process of its own for it. Times are taken in turns in one process.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.learner import ANSWER, BUDGET, RANK, rows
from benchmarks.subjects import Case, run_cases
from benchmarks.timing import Side, in_turns, ratio
from rlpost.algorithms import roles
from rlpost.config.schema import BaseKind, Dtype, LoraConfig
from rlpost.learner.group import learner_environment
from rlpost.learner.model import actor_critic
from rlpost.learner.model.actor_critic import ActorCritic
from rlpost.learner.model.packing import collate, plan_micro_batches, slot_starts
from rlpost.weights.models import resolve

MIB = 2**20


def main() -> None:
    run_cases(__doc__ or "", compare, ["smollm2-135m"], environment=lambda n: learner_environment(n, 0))


def compare(case: Case) -> str:
    torch.set_num_threads(case.threads)
    lines = []
    for kind in BaseKind:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            lines.append(pool.submit(memory, case, kind).result())
    sides = {kind.value: Side(one_pass(build(case, kind))) for kind in BaseKind}
    times = in_turns(sides, case.repeats)
    lines += [str(timing) for timing in times.values()]
    lines.append(f"time, nf4 / stored: {ratio(times['nf4'], times['stored'])}; 1.1 is wanted")
    return "\n".join(f"  {line}" for line in lines)


def build(case: Case, kind: BaseKind) -> ActorCritic:
    lora = LoraConfig(rank=RANK, alpha=2.0 * RANK, base=kind)
    model = actor_critic.build(resolve(case.model), Dtype[case.dtype], lora, 0, (roles.POLICY,), None)
    model.fuse()
    return model


def one_pass(model: ActorCritic) -> Callable[[], int]:
    batch = rows(500)
    weights = torch.randn(len(batch) * ANSWER, generator=torch.Generator().manual_seed(1))
    [plan] = plan_micro_batches(batch, range(len(batch)), BUDGET, 1)
    micros = [collate(batch, slot_starts(batch), groups) for groups in plan]

    def run() -> int:
        for micro in micros:
            (weights[micro.slots_N] * model(micro, (roles.POLICY,), 1.0).of(roles.POLICY)).sum().backward()
        model.zero_grad()
        return 1

    return run


def memory(case: Case, kind: BaseKind) -> str:
    torch.set_num_threads(case.threads)
    resolve(case.model)
    before = own_memory("RssAnon")
    model = build(case, kind)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = own_memory("RssAnon") - before
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    files = own_memory("RssFile")
    one_pass(model)()
    highest = own_memory("VmHWM") - files - before
    frozen = [t for t in (*model.parameters(), *model.buffers()) if not t.requires_grad]
    size = sum(t.numel() * t.element_size() for t in frozen)
    return (
        f"{kind.value}: frozen tensors {size / MIB:.0f} MiB, the model in the process {held / MIB:.0f} MiB,"
        f" highest in a pass {highest / MIB:.0f} MiB"
    )


def own_memory(key: str) -> int:
    """Bytes, by the name in /proc/self/status."""
    [line] = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(key)]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
