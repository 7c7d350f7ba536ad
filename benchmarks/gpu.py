"""Runs all GPU measurements in a short time: each part separately, with its own deadline, even if others fail.

    python -m benchmarks.gpu [--parts model kernels ...] [--limit 540] [--device cpu --toy]

Parts, in this order:
    model      writes a model of Qwen3-0.6B's shape with random weights and the bundled tokenizer; the others load it
    kernels    the Triton head against its definition in float64, then its time and memory against full logits
    attention  packed attention against float64 on the CPU, then its time on one row of 16,384 tokens
    learner    tokens/s of forward, backward and AdamW, rank 16, rows of 16,384 tokens, beside prime-rl's published
               figure; the operations on which the GPU spent the time
    iteration  two iterations of experiment=generalpoints_ppo, engine and learner on one GPU
    swap       benchmarks.swap: a proven swap against vLLM's own reload
    decode     benchmarks.decode: adapter against base, engine against learner
    compiled   the same with rollout.enforce_eager=false: CUDA graphs
    sleep      the iterations again with rollout.sleep: engine and learner in turns; on a GPU alone
The parts before iteration need no vLLM, Ray or DeepSpeed. `--device cpu --toy` runs the same code on a tiny model (with
Triton interpreted), to find simple errors without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gpu_kernels, gpu_parts
from benchmarks.gpu_parts import THREADS, Setup
from benchmarks.subjects import for_engines

GRACE_S = 20.0  # seconds for a stopped part to end its own processes
CPU_PATIENCE = 10  # factor on the deadlines, which are for a GPU


@dataclass(frozen=True)
class Part:
    run: Callable[[Setup], None]
    deadline_s: float
    environment: Mapping[str, str]


QUIET, COMPILED = for_engines(THREADS), for_engines(THREADS, eager=False)
PARTS = {
    "model": Part(gpu_parts.model, 90, QUIET),
    "kernels": Part(gpu_kernels.kernels, 60, QUIET),
    "attention": Part(gpu_kernels.attention, 60, QUIET),
    "learner": Part(gpu_parts.learner, 120, QUIET),
    "iteration": Part(gpu_parts.iteration, 240, {}),
    "swap": Part(gpu_parts.swap, 120, QUIET),
    "decode": Part(gpu_parts.decode, 120, QUIET),
    "compiled": Part(gpu_parts.compiled, 180, COMPILED),
    "sleep": Part(gpu_parts.sleep, 240, {}),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--toy", action="store_true", help="a tiny model and short rows")
    parser.add_argument("--limit", type=float, default=540, help="seconds for all parts together")
    # Set in a part's own process: run that part here.
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        PARTS[args.parts[0]].run(Setup(args.device, args.toy, args.folder))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        told = _all_parts(args, Path(scratch) / "model")
    print("\n" + "\n".join(f"{name}: {end}" for name, end in told.items()))
    return int(any(end.startswith("FAILED") for end in told.values()))


def _all_parts(args: argparse.Namespace, folder: Path) -> dict[str, str]:
    """How each part ended, by name."""
    ends, stop = dict[str, str](), time.monotonic() + args.limit
    patience = CPU_PATIENCE if args.device == "cpu" else 1
    options = ["--device", args.device, *(["--toy"] if args.toy else []), "--folder", str(folder)]
    for name in PARTS:
        if name not in args.parts and name != "model":
            continue
        print(f"\n== {name}", flush=True)
        started = time.monotonic()
        end = _attempt(name, options, min(patience * PARTS[name].deadline_s, stop - started))
        ends[name] = f"{end} after {time.monotonic() - started:.0f} s"
    return ends


def _attempt(name: str, options: list[str], seconds: float) -> str:
    """Run a part in its own process group. A part that fails prints the reason."""
    if seconds <= 0:
        return "FAILED: no time was left"
    command = [sys.executable, "-u", "-m", "benchmarks.gpu", "--parts", name, *options]
    environment = os.environ | PARTS[name].environment
    if "cpu" in options and name == "kernels":
        environment["TRITON_INTERPRET"] = "1"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return "FAILED: its time was up"
    return "done" if code == 0 else f"FAILED with {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process group to end (a run then ends all its processes), and kill it if it does not."""
    os.killpg(process.pid, signal.SIGTERM)
    stop = time.monotonic() + GRACE_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < stop:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
