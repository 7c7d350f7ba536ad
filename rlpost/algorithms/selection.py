"""The episodes that an update learns from, where these are not all: distinct successes (rft), pairs (dpo).

    rft: right wrong right right(equal to the first) ─▶ learn from the first and the third, advantage 1
    dpo: rewards of a group 5 0 5 0 0 ─▶ pairs (5, 0), (5, 0); advantage 1 for the better, -1 for the worse, before the
         weights of a step (rlpost.algorithms.preferences)

Shapes: B episodes, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.algorithms.advantages import EQUAL_WITHIN


@dataclass(frozen=True)
class Selection:
    """What each episode is learnt as; 0 for those left out."""

    advantages_B: Tensor  # 1, -1 or 0
    metrics: dict[str, float]
    pairs_P2: Tensor | None = None  # the better and the worse episode of each pair

    @property
    def learnt_B(self) -> Tensor:
        """bool: the episodes with a term in the loss."""
        return self.advantages_B != 0


def distinct_successes(successes: Sequence[bool], episodes: Sequence[Sequence[int]]) -> Selection:
    """The episodes that succeeded; of those with equal tokens (`episodes`, prompt and all turns) only the first.

    Rejection-sampling fine-tuning keeps the distinct solutions of a question (arXiv 2308.01825); here two are distinct
    if any token differs. An episode of several turns is learnt whole or not at all.

    Metrics: kept_episodes (share of the episodes).
    """
    seen = set[tuple[int, ...]]()
    kept = []
    for success, tokens in zip(successes, map(tuple, episodes), strict=True):
        kept.append(success and tokens not in seen)
        if success:
            seen.add(tokens)
    return Selection(torch.tensor(kept).float(), {"kept_episodes": sum(kept) / max(1, len(kept))})


def ranked_pairs(scores_B: Tensor, groups_B: Tensor) -> Selection:
    """Pairs within each group: the best with the worst, the second best with the second worst, while scores differ.

    Differences within EQUAL_WITHIN of the scores' size count as none. With two scores, right and wrong, these are
    min(right, wrong) pairs. Equal scores keep the order of the batch, which depends on (seed, iteration) alone and not
    on the answers. No episode is in two pairs.

    Metrics: kept_episodes (share of the episodes), paired_groups (share of the groups that have a pair).
    """
    pairs, groups = list[list[int]](), torch.unique(groups_B)
    paired = 0
    for group in groups:
        members = (groups_B == group).nonzero()[:, 0]
        ranked = members[scores_B[members].argsort(descending=True, stable=True)].tolist()
        found = [[a, b] for a, b in zip(ranked[: len(ranked) // 2], ranked[::-1], strict=False)]
        found = [[a, b] for a, b in found if _better(scores_B[a].item(), scores_B[b].item())]
        paired += bool(found)
        pairs += found
    pairs_P2 = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    advantages_B = torch.zeros(len(groups_B))
    advantages_B[pairs_P2[:, 0]], advantages_B[pairs_P2[:, 1]] = 1.0, -1.0
    shares = {"kept_episodes": 2 * len(pairs) / len(groups_B), "paired_groups": paired / len(groups)}
    return Selection(advantages_B, shares, pairs_P2)


def _better(score: float, other: float) -> bool:
    return score - other > EQUAL_WITHIN * max(abs(score), abs(other))
