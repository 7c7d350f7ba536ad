"""Direct preference optimization (arXiv 2305.18290) whose pairs may lie in different micro-batches and ranks.

The loss of a pair joins two whole episodes, so no micro-batch can compute it alone. Its gradient can be split, though:
with the log-probs of the minibatch known, the derivative of the loss by each token's log-prob is a number.

    pass without gradient ─▶ log pi, log ref of every episode ─▶ margins ─▶ advantages, fixed for one step
                          ─▶ surrogate -A log pi, micro-batch by micro-batch: the gradient of the loss, exactly

Shapes: N sampled tokens, B episodes, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlpost.algorithms.credit import Metrics, TrainingBatch
from rlpost.algorithms.roles import POLICY, REFERENCE


def dpo(
    logprobs_B: Tensor, reference_B: Tensor, pairs_P2: Tensor, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The advantages of whole episodes under the DPO loss (equation 7), and its metrics.

    The loss is the mean over pairs of -log sigmoid(m), where m = beta (log pi(w) - log ref(w) - log pi(l) + log ref(l))
    is the margin of the implicit rewards of winner w and loser l. Times the number of pairs, its derivative by log
    pi(w) is -beta sigmoid(-m), and by log pi(l) the opposite. An advantage is the negated derivative, so that -A log pi
    / pairs has the gradient of the loss.

    Args:
        logprobs_B, reference_B: sums over the sampled tokens of each episode, under policy and reference.
        pairs_P2: winner and loser of each pair. No episode is in two pairs.

    Metrics: policy_loss (the DPO loss; log 2 if the policy is the reference), dpo_margin (mean m), dpo_accuracy (share
    of pairs with m > 0).
    """
    winners_P, losers_P = pairs_P2.unbind(1)
    gaps_B = logprobs_B - reference_B
    margins_P = beta * (gaps_B[winners_P] - gaps_B[losers_P])
    pull_P = beta * torch.sigmoid(-margins_P)
    advantages_B = torch.zeros_like(gaps_B)
    advantages_B[winners_P], advantages_B[losers_P] = pull_P, -pull_P
    metrics = {
        "policy_loss": -logsigmoid(margins_P).mean(),
        "dpo_margin": margins_P.mean(),
        "dpo_accuracy": (margins_P > 0).double().mean(),
    }
    return advantages_B, metrics


def with_preferences(
    batch: TrainingBatch, episodes: Sequence[int], outputs: Mapping[str, Tensor], beta: float
) -> tuple[TrainingBatch, Metrics]:
    """`batch` with the advantages of the next step on the minibatch `episodes`.

    `outputs` are the current log-probs (N,) of POLICY and REFERENCE; tokens outside the minibatch are not read. Metrics
    are those of `dpo`.
    """
    assert batch.pairs_P2 is not None, "preferences are between the episodes of pairs"
    layout = batch.layout
    here_P = torch.isin(batch.pairs_P2[:, 0], torch.tensor(list(episodes)))
    logprobs_B, reference_B = (layout.per_episode(outputs[role].double()) for role in (POLICY, REFERENCE))
    advantages_B, metrics = dpo(logprobs_B, reference_B, batch.pairs_P2[here_P], beta)
    weighed = replace(batch, advantages_N=advantages_B.float()[layout.episodes_N])
    return weighed, {name: value.item() for name, value in metrics.items()}
