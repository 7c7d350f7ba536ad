"""Which rows begin with the same tokens, and are therefore computed together: the shared prefix once.

    rows sorted by tokens ─▶ tree of common prefixes ─▶ per node: join here, or stay apart in deeper groups
                                                        whichever saves more tokens

Prefixes are found by comparing tokens, never by what a group is called: a prefix is shared if and only if it is
the same. A row's last token is a target only, so it takes no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

WORTHWHILE = 8  # tokens; a shorter common prefix costs more in bookkeeping than it saves


@dataclass(frozen=True)
class Group:
    """Rows (`members`) whose first `prefix` input tokens are the same; a row by itself has prefix 0."""

    prefix: int
    members: tuple[int, ...]

    def cost(self, lengths: Sequence[int]) -> int:
        """Input tokens to compute, given every row's number of input tokens."""
        return self.prefix + sum(lengths[i] - self.prefix for i in self.members)


@dataclass
class _Choice:
    """The best grouping found for a run of rows: tokens saved by `groups`; `alone` are rows in none of them."""

    saved: int = 0
    groups: list[Group] = field(default_factory=list)
    alone: list[int] = field(default_factory=list)

    def rows(self) -> list[int]:
        return self.alone + [i for group in self.groups for i in group.members]


@dataclass
class _Node:
    """Rows that have `depth` tokens in common, as runs that have more in common among themselves."""

    depth: int
    kids: list[_Choice] = field(default_factory=list)

    def best(self, worthwhile: int) -> _Choice:
        """Kids that save less by their own groups than by joining here join; the others stay as they are."""
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
    """Groups that hold each of the rows `indices` once, the same for any order of `indices`.

    `tokens` are the input tokens of all rows. Of two rows that stay apart none gets shorter; ties and nested
    prefixes go to whichever saves more tokens, one level deep.
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
    """Length of the common prefix."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length
