"""Decoding speed with a merged adapter against the bare base, and the log-prob gap between engine and learner.

    python -m benchmarks.decode [--models tiny smollm2-135m] [--dtypes float32 bfloat16] [--threads 1]

Claims: adapter speed at least 0.95 of base speed; mean |log-prob difference| between engine and learner on sampled
tokens at most 0.02 in float32 and 0.06 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.subjects import Case, Policy, mean, prompts, run_cases
from benchmarks.timing import Side, in_turns, ratio
from rlpost.rollout.engine.protocol import Completion, Sampling
from rlpost.rollout.engine.vllm_engine import VllmEngine
from rlpost.types import ModelInput

SEQUENCES = 64
NEW_TOKENS = 48
GAP_SEQUENCES = 16
ANY_GAP = 10.0
LARGEST_GAP = {"float32": 0.02, "bfloat16": 0.06}


def main() -> None:
    run_cases(__doc__ or "", compare, ["tiny", "smollm2-135m"])


def compare(case: Case) -> str:
    settings = case.settings(max_num_seqs=SEQUENCES, kv_cache_gib=1.0)
    engine = VllmEngine(settings)
    policy = Policy.random(settings.model, case.dtype)
    asked = prompts(settings.model, SEQUENCES)
    canary = policy.canary(sum(asked[:4], ()))
    latest: dict[str, list[Completion]] = {}

    def side(name: str, prepare: Callable[[], object]) -> Side:
        def run() -> int:
            latest[name] = generate(engine, asked)
            return sum(len(completion.token_ids) for completion in latest[name])

        return Side(run, prepare)

    times = in_turns(
        {
            "base": side("base", engine.reset),
            "adapter": side("adapter", lambda: engine.swap(policy.adapter, canary, ANY_GAP)),
        },
        case.repeats,
    )
    gaps = [
        gap(policy, prompt, done)
        for prompt, done in zip(asked[:GAP_SEQUENCES], latest["adapter"], strict=False)
    ]
    return "\n".join(
        [
            *(f"  {name}: {1 / timing.median:.0f} tokens/s" for name, timing in times.items()),
            f"  speed, adapter / base: {ratio(times['base'], times['adapter'])}; at least 0.95 is wanted",
            f"  mean |engine - learner| log-prob: {mean(gaps):.4f}; at most {LARGEST_GAP[case.dtype]} is wanted",
        ]
    )


def generate(engine: VllmEngine, asked: list[tuple[int, ...]]) -> list[Completion]:
    for i, prompt in enumerate(asked):
        engine.submit(str(i), ModelInput(tuple(prompt)), Sampling(1.0, NEW_TOKENS), seed=i)
    done: dict[str, Completion] = {}
    while len(done) < len(asked):
        done.update(engine.step())
    return [done[str(i)] for i in range(len(asked))]


def gap(policy: Policy, prompt: tuple[int, ...], done: Completion) -> float:
    """The mean |log-prob difference| over the sampled tokens of one answer."""
    learner = policy.logprobs((*prompt, *done.token_ids))[len(prompt) - 1 :]
    return mean([abs(a - b) for a, b in zip(learner, done.logprobs, strict=True)])


if __name__ == "__main__":
    main()
