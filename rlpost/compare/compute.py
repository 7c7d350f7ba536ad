"""What an arm has spent, from the token counts that its run measured.

FLOPs as in arXiv 2501.17161, appendix C (after Kaplan et al., arXiv 2001.08361): 6 N D for training, 2 N D for
inference, N parameters of the model, D tokens through it. A line of metrics.jsonl names its tokens by `KEYS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlpost.compare.types import Compute

PROMPT = "tokens/prompt"  # written by the environment (prompts, feedback), read by the engine, each once
SAMPLED = "tokens/sampled"  # sampled by the engine
SCORED = "tokens/scored"  # through the learner without gradient (policy, reference, critic): rows x passes
TRAINED = "tokens/trained"  # through the learner forward and backward (policy, critic): rows x passes
KEYS = (PROMPT, SAMPLED, SCORED, TRAINED)
DEVICE_PHASES = ("seconds/rollout", "seconds/logprobs", "seconds/update", "seconds/swap")


def spent(lines: Sequence[Mapping[str, float]], parameters: int, devices: int = 1) -> list[Compute]:
    """Cumulative compute after each line of metrics.jsonl, evaluations not counted.

    Args:
        lines: each has the keys `KEYS` that apply to it (a supervised step samples nothing) and its `seconds/...`.
        parameters: N, of the model with embeddings (tied ones once), the adapter apart.
        devices: that worked through `DEVICE_PHASES` together.

    Raises ComparisonError for a line without any token count, or with a negative or fractional one.
    """
    raise NotImplementedError


def lora_flops(line: Mapping[str, float], parameters: int, adapter: int) -> float:
    """What a line really costs with a frozen base: 4 N D + 6 A D for training, 2 (N + A) D for inference.

    A: parameters of the adapter. The base's weights get no gradient, which saves 2 N D of the 6 N D.
    """
    raise NotImplementedError
