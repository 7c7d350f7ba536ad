"""The compute that an arm has spent and the answers it has learnt from, from the counts that its run measured.

FLOPs follow arXiv 2501.17161, appendix (after Kaplan et al., arXiv 2001.08361): 6 N D for training, 2 N D for
inference, with N parameters of the model and D tokens through it. `KEYS` names the token counts in metrics.jsonl. A
teacher (algo=opd) adds 2 N D of its own.

Rollouts count what an arm learns from, whatever it costs: the episodes that it played, and the expert's examples that
it was shown. An expert's answer is a correct rollout, by another policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlpost.errors import ComparisonError

PROMPT = "tokens/prompt"  # tokens of the environment (prompts, feedback), each read once by the engine
SAMPLED = "tokens/sampled"  # sampled by the engine
SCORED = "tokens/scored"  # through the learner without gradient (policy, reference, critic), in each pass
TRAINED = "tokens/trained"  # through the learner forward and backward (policy, critic), in each pass
INFERENCE = (PROMPT, SAMPLED, SCORED)
TAUGHT = "tokens/teacher"  # through the teacher, of TEACHER_SIZE parameters
TEACHER_SIZE = "parameters/teacher"
KEYS = (*INFERENCE, TRAINED, TAUGHT)
EPISODES, SUCCESS = "episodes", "success"  # of an iteration: episodes played, and the share that succeeded
EXAMPLES = "examples"  # expert answers of a supervised step
DEVICE_PHASES = ("seconds/rollout", "seconds/rewards", "seconds/logprobs", "seconds/update", "seconds/swap")


@dataclass(frozen=True)
class Compute:
    """The compute spent since the arms' common start (init: since the bare model), without evaluations."""

    flops: float  # 6ND for training, 2ND for inference, N: parameters, D: measured tokens; arXiv 2501.17161, appendix
    tokens: int  # generated, scored and trained on; each pass counts
    # Wall-clock time of rollout, rewards, learner and swap. A run holds all its devices throughout.
    device_seconds: float
    # Episodes played and expert examples shown; None: a record of an earlier version does not say how many examples.
    rollouts: int | None = None
    correct_rollouts: int | None = None  # episodes that succeeded and expert examples; None likewise


def spent(lines: Sequence[Mapping[str, float]], parameters: int) -> list[Compute]:
    """Cumulative compute after each line of metrics.jsonl, without evaluations.

    Args:
        lines: steps or iterations; a key of `KEYS` or `DEVICE_PHASES` that a line lacks counts as 0 (an SFT
            step samples nothing). From the first line with neither episodes nor examples, rollouts are None.
        parameters: N, of the model with embeddings (tied ones once), without the adapter.

    Raises ComparisonError if a line has no token count, or one that is not a number of tokens.
    """
    flops, tokens, seconds, cumulative = 0.0, 0, 0.0, []
    rollouts: int | None = 0
    correct: int | None = 0
    for number, line in enumerate(lines):
        inferred, trained = _counts(line, number)
        flops += parameters * (2.0 * inferred + 6.0 * trained) + _of_teacher(line)
        tokens += inferred + trained + int(line.get(TAUGHT, 0))
        seconds += sum(line[key] for key in DEVICE_PHASES if key in line)
        played, succeeded = _rollouts(line)
        rollouts, correct = _sum(rollouts, played), _sum(correct, succeeded)
        cumulative.append(Compute(flops, tokens, seconds, rollouts, correct))
    return cumulative


def _rollouts(line: Mapping[str, float]) -> tuple[int | None, int | None]:
    """The rollouts of a step or iteration, and how many of them are correct; None if its line does not say."""
    if EPISODES not in line and EXAMPLES not in line:
        return None, None
    played, shown = line.get(EPISODES, 0), int(line.get(EXAMPLES, 0))
    return int(played) + shown, round(played * line.get(SUCCESS, 0.0)) + shown


def _sum(before: int | None, more: int | None) -> int | None:
    return None if before is None or more is None else before + more


def real_flops(line: Mapping[str, float], parameters: int, trained: int, added: int) -> float:
    """The FLOPs of a line in which only `trained` parameters T get gradients, and `added` ones A join the model's N.

    2 (N + A) D for inference, (4 (N + A) + 2 T) D for training: forward, gradients of the inputs, and those of the T
    parameters. An adapter has T = A: 4 N D + 6 A D. Full fine-tuning has A = 0: (4 N + 2 T) D, which is 6 N D if all
    train. As in 6 N D, the products of attention are not counted. The saving from applying the head to loss tokens only
    is not counted either.

    For an adapter, A is the number of parameters in its file, which is LoRA's cost. For kinds that compute more than
    one product a parameter this is too low: VeRA's and RandLoRA's products with random matrices, OFT's and BOFT's
    rotations, and kinds that build a whole weight in each pass (HiRA, LoHa, LoKr, FourierFT) are not counted. The
    adapter of a teacher is not counted either.
    """
    inferred, learnt = _counts(line, 0)
    learning = (4.0 * (parameters + added) + 2.0 * trained) * learnt
    return 2.0 * (parameters + added) * inferred + learning + _of_teacher(line)


def _of_teacher(line: Mapping[str, float]) -> float:
    """The FLOPs of the teacher's passes: 2 N D."""
    return 2.0 * line[TEACHER_SIZE] * line[TAUGHT] if TAUGHT in line else 0.0


def _counts(line: Mapping[str, float], number: int) -> tuple[int, int]:
    """The numbers of tokens through the model without and with gradient, without those through a teacher."""
    given = {key: line[key] for key in KEYS if key in line}
    if not given:
        raise ComparisonError(
            f"line {number} of the metrics counts no tokens: it has none of {', '.join(KEYS)}"
        )
    for key, value in given.items():
        if value is None or value < 0 or value != int(value):
            raise ComparisonError(f"line {number} of the metrics: {key}={value} is no number of tokens")
    trained, _ = int(given.pop(TRAINED, 0)), given.pop(TAUGHT, 0)
    return sum(map(int, given.values())), trained
