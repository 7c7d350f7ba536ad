"""Decoding and swaps of an engine of two ranks (rollout.tensor_parallel=2) against one of a rank with two threads.

    python -m benchmarks.tensor_parallel [--models tiny FOLDER] [--dtypes float32] [--repeats 5]

Both engines stay loaded, each in processes of its own, and work in turns on the same two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from benchmarks.decode import ANY_GAP, generate
from benchmarks.subjects import Case, Policy, prompts
from benchmarks.timing import Side, in_turns, ratio
from rlpost.rollout.engine.settings import engine_environment
from rlpost.rollout.engine.vllm_engine import VllmEngine

SEQUENCES = 32
SWAP_UNITS = 1
RANKS = {"one rank": (1, 2), "two ranks": (2, 1)}  # tensor_parallel, threads of a rank


class _Engine:
    """The engine of this process, with a random adapter to swap in."""

    def __init__(self, case: Case, ranks: int) -> None:
        settings = replace(
            case.settings(max_num_seqs=SEQUENCES, kv_cache_gib=0.5, max_model_len=512), tensor_parallel=ranks
        )
        self.engine = VllmEngine(settings)
        self.policy = Policy.random(settings.model, case.dtype)
        self.asked = prompts(settings.model, SEQUENCES)
        self.canary = self.policy.canary(sum(self.asked[:4], ()))


_here: list[_Engine] = []


def _start(case: Case, ranks: int) -> None:
    os.environ.update(engine_environment(case.threads, case.eager, ranks))
    _here.append(_Engine(case, ranks))


def _swap() -> float:
    """Swap the adapter in; returns the canary's gap in nats."""
    return _here[0].engine.swap(_here[0].policy.adapter, _here[0].canary, ANY_GAP).canary_gap


def _decode() -> int:
    """Generate; returns the number of tokens."""
    return sum(len(done.token_ids) for done in generate(_here[0].engine, _here[0].asked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["tiny"], help="folders or names; their heads divide by two"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for model in args.models:
        for dtype in args.dtypes:
            print(_compare(model, dtype, args.repeats), flush=True)


def _compare(model: str, dtype: str, repeats: int) -> str:
    pools = {name: ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) for name in RANKS}
    try:
        seconds, gaps = {}, {}
        for name, (ranks, threads) in RANKS.items():
            began = time.perf_counter()
            pools[name].submit(_start, Case(model, dtype, threads, repeats), ranks).result()
            seconds[name] = time.perf_counter() - began
            gaps[name] = pools[name].submit(_swap).result()
        swaps = in_turns({n: Side(partial(_timed_swap, p)) for n, p in pools.items()}, repeats)
        decoding = in_turns({n: Side(partial(_timed_decoding, p)) for n, p in pools.items()}, repeats)
    finally:
        for pool in pools.values():
            pool.shutdown()
    one, two = RANKS
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n".join(
        [
            f"{model} {dtype}, load {load}",
            *(
                f"  {name}: started in {seconds[name]:.0f} s, canary gap {gaps[name]:.2g} nats"
                for name in RANKS
            ),
            *(f"  decoding, {name}: {1 / timing.median:.0f} tokens/s" for name, timing in decoding.items()),
            f"  decoding speed, two ranks / one: {ratio(decoding[one], decoding[two])}",
            *(f"  swap, {timing}" for timing in swaps.values()),
            f"  swap seconds, two ranks / one: {ratio(swaps[two], swaps[one])}",
        ]
    )


def _timed_decoding(pool: ProcessPoolExecutor) -> int:
    return pool.submit(_decode).result()


def _timed_swap(pool: ProcessPoolExecutor) -> int:
    pool.submit(_swap).result()
    return SWAP_UNITS


if __name__ == "__main__":
    main()
