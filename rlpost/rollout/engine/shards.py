"""Which part of a checkpoint's parameter a live tensor of the engine holds.

A tensor-parallel engine divides a parameter's rows (column parallel layers, the vocabulary) or columns (row parallel
layers) between its ranks, and repeats what it cannot divide: norms, and key-value heads if there are more ranks than
heads. Sizes alone say where a rank's piece begins, so no kind of layer needs a rule of its own. One rank holds
everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

ALL = slice(None)


@dataclass(frozen=True)
class Rank:
    """The place of a worker among the `world` workers that share a layer."""

    number: int = 0
    world: int = 1


@dataclass(frozen=True)
class Part:
    """A parameter of the checkpoint as a live tensor holds it: some of its rows, stacked, and some of its columns."""

    parameter: str
    rows: tuple[slice, ...] = (ALL,)
    columns: slice = field(default_factory=lambda: ALL)

    @property
    def is_whole(self) -> bool:
        return self.rows == (ALL,) and self.columns == ALL

    def pieces(self, whole: Tensor) -> list[Tensor]:
        """Views of the rows that are stacked in the live tensor, of a tensor of the checkpoint's shape."""
        return [whole[rows] if whole.ndim == 1 else whole[rows, self.columns] for rows in self.rows]


def piece(full: int, local: int, rank: Rank) -> slice:
    """The rank's `local` rows (or columns) of `full`. Neighbouring ranks share one if there are more ranks than pieces.

    Raises ValueError if the ranks cannot have pieces of that size.
    """
    pieces, rest = divmod(full, local)
    if rest or not pieces or rank.world % pieces:
        raise ValueError(f"{full} are not {rank.world} ranks' pieces of {local}")
    if pieces == 1:
        return ALL
    begin = rank.number * pieces // rank.world * local
    return slice(begin, begin + local)


def stacked(sections: Sequence[int], local: Sequence[int], rank: Rank) -> tuple[slice, ...]:
    """The rank's rows of a parameter whose `sections` are divided each on its own, as a fused one's in the checkpoint.

    `local`: how many rows of each section a rank holds. Raises ValueError like `piece`.
    """
    if tuple(sections) == tuple(local):
        return (ALL,)
    begins = [sum(sections[:i]) for i in range(len(sections))]
    return tuple(
        _within(piece(full, size, rank), begin, full)
        for begin, full, size in zip(begins, sections, local, strict=True)
    )


def _within(rows: slice, begin: int, full: int) -> slice:
    start, stop, _ = rows.indices(full)
    return slice(begin + start, begin + stop)
