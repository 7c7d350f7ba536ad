"""What an arm has spent, from the token counts that its run measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlpost.compare.types import Compute

INFERENCE = ("tokens/prompt", "tokens/sampled", "tokens/scored")
TRAINED = "tokens/trained"
DEVICE_PHASES = ("seconds/rollout", "seconds/logprobs", "seconds/update", "seconds/swap")


def spent(lines: Sequence[Mapping[str, float]], parameters: int) -> list[Compute]:
    """Cumulative compute after each line of metrics.jsonl: 2 N D for inference, 6 N D for training."""
    flops, tokens, seconds, found = 0.0, 0, 0.0, []
    for line in lines:
        inferred = sum(line[key] for key in INFERENCE if key in line)
        flops += parameters * (2 * inferred + 6 * line[TRAINED])
        tokens += round(inferred + line[TRAINED])
        seconds += sum(line[key] for key in DEVICE_PHASES if key in line)
        found.append(Compute(flops, tokens, seconds))
    return found
