"""The speed of products on this machine by layout and precision, and the choice of `dtype=auto` with its price.

    python -m benchmarks.machine [--models tiny smollm2-135m] [--repeats 5]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python -m benchmarks.machine     as if without AVX-512 and AMX

The price of a wrong choice is the ratio of a token's products in the slower precision to those in the faster one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from benchmarks.timing import spread
from rlpost.cluster.precision import Measurement, Shapes
from rlpost.config.compose import compose
from rlpost.config.schema import Dtype
from rlpost.weights.models import resolve

RESTRICTIONS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
INSTRUCTIONS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", default=["tiny", "smollm2-135m"], help="as model=... takes them"
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)  # as `dtype=auto` does
    print(processor())
    for model in args.models:
        cfg = compose(["experiment=generalpoints_ppo", f"model={model}"])
        report(model, Shapes.of(cfg, resolve(model)), args.repeats)


def processor() -> str:
    """The processor's name, its instruction sets and any variables that restrict them."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    has = [name for name in INSTRUCTIONS if name in named.get("flags", "").split()]
    restricted = [f"{name}={os.environ[name]}" for name in RESTRICTIONS if name in os.environ]
    return (
        f"{named.get('model name', platform.processor())}, {len(os.sched_getaffinity(0))} CPUs\n"
        f"  has {', '.join(has) or 'none of ' + ', '.join(INSTRUCTIONS)}; torch uses"
        f" {torch.backends.cpu.get_cpu_capability()}; restricted by {', '.join(restricted) or 'nothing'}"
    )


def report(model: str, shapes: Shapes, repeats: int) -> None:
    started = time.perf_counter()
    found = [Measurement.of(shapes) for _ in range(repeats)]
    took = (time.perf_counter() - started) / repeats
    print(f"\n{model}: {shapes}; a measurement takes {took:.2f} s; GFLOP/s, median and range")
    for name in found[0].rates:
        rates = (f"{d.value} {spread([m.rates[name][d] for m in found])}" for d in found[0].seconds)
        print(f"  {name:18} {'   '.join(rates)}")
    chosen = [measurement.best for measurement in found]
    price = [measurement.slowdown(Dtype.bfloat16) for measurement in found]
    slowdown = max(statistics.median(price), 1 / statistics.median(price))
    print(
        f"  auto: {', '.join(sorted({c.value for c in chosen}))} (bfloat16 takes {spread(price)} times as long)"
    )
    print(f"  the other choice would cost {slowdown:.1f} times the time of a token's products")


if __name__ == "__main__":
    main()
