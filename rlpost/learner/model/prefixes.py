"""Finds rows that start with the same tokens, so that their shared prefix is computed once.

    rows sorted by tokens ─▶ tree of common prefixes ─▶ per node: join here, or stay in deeper groups,
                                                        whichever saves more tokens

Prefixes are found by comparing tokens, not by group names: rows share a prefix if and only if the tokens are equal. A
row's last token is only a target, so it is not part of a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WORTHWHILE = 8  # tokens; bookkeeping for a shorter common prefix costs more than the prefix saves


@dataclass(frozen=True)
class Group:
    """Rows (`members`) whose first `prefix` input tokens are the same. A row alone has prefix 0."""

    prefix: int
    members: tuple[int, ...]

    def cost(self, lengths: Sequence[int]) -> int:
        """The number of input tokens to compute, given every row's number of input tokens."""
        return self.prefix + sum(lengths[i] - self.prefix for i in self.members)


@dataclass
class _Choice:
    """The best grouping of a run of rows: `groups`, the tokens they save, and `alone`, the rows in no group."""

    saved: int = 0
    groups: list[Group] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)

    def rows(self) -> list[int]:
        return self.alone + [i for group in self.groups for i in group.members]


@dataclass
class _Node:
    """Rows that have `depth` tokens in common. Its kids are runs of rows that have more in common."""

    depth: int
    kids: list[_Choice] = field(default_factory=list)

    def best(self, worthwhile: int) -> _Choice:
        """Kids join here if that saves more tokens than their own groups do; the others keep their groups."""
        choice, joining = _Choice(), []
        for kid in self.kids:
            rows = kid.rows()
            if self.depth >= worthwhile and kid.saved < self.depth * len(rows):
                joining += rows
            else:
                choice.saved += kid.saved
                choice.groups += kid.groups
                choice.alone += kid.alone
        if len(joining) > 1:
            choice.saved += self.depth * (len(joining) - 1)
            choice.groups.append(Group(self.depth, tuple(sorted(joining))))
        else:
            choice.alone += joining
        return choice


def share_prefixes(
    tokens: Sequence[Sequence[int]], indices: Sequence[int], worthwhile: int = WORTHWHILE
) -> list[Group]:
    """Groups that contain each of the rows `indices` once; the order of `indices` does not matter.

    `tokens` are the input tokens of all rows. Groups do not nest: where prefixes nest, the level that saves more tokens
    is used.
    """
    order = sorted(indices, key=lambda i: (tuple(tokens[i]), i))
    arrays = [np.asarray(tokens[i]) for i in order]
    stack = [_Node(0)]
    for k, i in enumerate(order):
        common = _common(arrays[k], arrays[k + 1]) if k + 1 < len(order) else 0
        choice = _Choice(alone=[i])
        while stack[-1].depth > common:
            stack[-1].kids.append(choice)
            choice = stack.pop().best(worthwhile)
        if stack[-1].depth < common:
            stack.append(_Node(common))
        stack[-1].kids.append(choice)
    best = stack[0].best(worthwhile)
    return sorted(best.groups + [Group(0, (i,)) for i in best.alone], key=lambda g: g.members)


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """The length of the common prefix."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length
