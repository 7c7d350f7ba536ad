"""The episode, turn and group of each sampled token, and its weight in a mean.

The sampled tokens of a batch have one flat numbering: episodes in order, turns in order, tokens in order.
Worked example: two episodes of one group, the first with turns of 2 and 1 tokens, the second with one of 3:

    token       0 1 2 | 3 4 5
    episodes_N  0 0 0 | 1 1 1
    turns_N     0 0 1 | 2 2 2      numbered over the whole batch
    opens_N     1 0 1 | 1 0 0      first token of its turn
    samples_N   0 0 0 | 1 1 1      conversations, numbered over the whole batch; an agent's episode may have several

An episode of several samples is one episode everywhere: of its group, in means, and in time, which goes through its
samples in order. Only a ratio of whole answers' probabilities is taken sample by sample, as the learner computes them.

Shapes: N sampled tokens, U turns, B episodes, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpost.config.presets import Aggregation, Ratio


@dataclass(frozen=True)
class TokenLayout:
    episodes_N: Tensor
    turns_N: Tensor
    opens_N: Tensor  # bool
    episodes_U: Tensor
    lengths_U: Tensor
    groups_B: Tensor  # 0 to G - 1
    samples_N: Tensor
    thoughts_N: Tensor  # bool: a token of a turn's thought, before its answer

    @classmethod
    def of(
        cls,
        turns: Sequence[Sequence[int]],
        groups: Sequence[int],
        thoughts: Sequence[Sequence[int]],
        opens: Sequence[Sequence[bool]] | None = None,
    ) -> TokenLayout:
        """`turns[b]` are the lengths of episode b's turns; `thoughts[b]` are the numbers of thought tokens at the start
        of each turn; `groups[b]` is any number that the group shares; `opens[b]` says whether each turn opens a sample
        (the first always does; none: only the first). Raises ValueError for a turn without tokens."""
        lengths_U = torch.tensor([n for episode in turns for n in episode])
        if lengths_U.numel() and int(lengths_U.min()) < 1:
            raise ValueError("a turn has no sampled token; leave such turns out")
        thoughts_U = torch.tensor([n for episode in thoughts for n in episode])
        episodes_U = torch.tensor([b for b, episode in enumerate(turns) for _ in episode])
        opens_U = torch.tensor(
            [k == 0 or bool(opens and opens[b][k]) for b, e in enumerate(turns) for k in range(len(e))]
        )
        turns_N = torch.arange(len(lengths_U)).repeat_interleave(lengths_U)
        positions_N = torch.arange(len(turns_N)) - (lengths_U.cumsum(0) - lengths_U)[turns_N]
        return cls(
            episodes_N=episodes_U[turns_N],
            turns_N=turns_N,
            opens_N=positions_N == 0,
            episodes_U=episodes_U,
            lengths_U=lengths_U,
            groups_B=torch.unique(torch.tensor(groups), return_inverse=True)[1],
            samples_N=(opens_U.cumsum(0) - 1)[turns_N],
            thoughts_N=positions_N < thoughts_U[turns_N],
        )

    @property
    def lengths_B(self) -> Tensor:
        return torch.bincount(self.episodes_N, minlength=len(self.groups_B))

    @property
    def groups_U(self) -> Tensor:
        return self.groups_B[self.episodes_U]

    @property
    def sample_starts_N(self) -> Tensor:
        """Whether each token is the first of its sample, (N,) bool."""
        before_N = torch.cat([self.samples_N.new_full((1,), -1), self.samples_N[:-1]])
        return self.samples_N != before_N

    def units_N(self, ratio: Ratio) -> Tensor:
        """The unit's number for each token: tokens with one number share an importance ratio."""
        return self.turns_N if ratio is Ratio.turn else self.samples_N

    def per_turn(self, values_N: Tensor) -> Tensor:
        """The sum over each turn's tokens, (U,)."""
        return values_N.new_zeros(len(self.lengths_U)).index_add(0, self.turns_N, values_N)

    def per_episode(self, values_N: Tensor) -> Tensor:
        """The sum over each episode's tokens, (B,)."""
        return values_N.new_zeros(len(self.groups_B)).index_add(0, self.episodes_N, values_N)

    def weights(self, episodes: Sequence[int], aggregation: Aggregation, budget: int) -> Tensor:
        """Weight (N,) of each token's term in the loss of a minibatch of whole `episodes`; zero for tokens outside it.

        tokens: 1 / tokens (DAPO). turns: 1 / (turns x the turn's length). episodes: 1 / (episodes x the episode's
        length) (GRPO). constant: 1 / (episodes x `budget`) (Dr. GRPO). pairs: 1 / pairs, of which each has two of the
        `episodes` (DPO). The first three sum to one. Without `episodes` all weights are zero.
        """
        if not episodes:
            return torch.zeros(len(self.turns_N))
        chosen_B = torch.zeros(len(self.groups_B), dtype=torch.bool)
        chosen_B[list(episodes)] = True
        chosen_N, count = chosen_B[self.episodes_N], len(episodes)
        if aggregation is Aggregation.tokens:
            share_N = torch.ones(len(chosen_N)) / chosen_N.sum()
        elif aggregation is Aggregation.turns:
            share_N = 1.0 / (chosen_B[self.episodes_U].sum() * self.lengths_U[self.turns_N])
        elif aggregation is Aggregation.episodes:
            share_N = 1.0 / (count * self.lengths_B[self.episodes_N])
        elif aggregation is Aggregation.pairs:
            share_N = torch.full((len(chosen_N),), 2.0 / count)
        else:
            share_N = torch.full((len(chosen_N),), 1.0 / (count * budget))
        return share_N.float() * chosen_N
