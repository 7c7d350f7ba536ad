"""Assembles groups from episodes that arrive in any order, from several workers, some of them twice."""

from __future__ import annotations

from collections.abc import Sequence

from rlpost.types import EpisodeSpec, Trajectory


class GroupAssembler:
    """Returns each group of `specs` once, when its last episode has arrived."""

    def __init__(self, specs: Sequence[EpisodeSpec]) -> None:
        self._specs = specs
        # The indices in `specs` of each group that was not returned yet.
        self._places: dict[int, list[int]] = {}
        for place, spec in enumerate(specs):
            self._places.setdefault(spec.group, []).append(place)
        self._held: dict[int, Trajectory] = {}  # episodes of incomplete groups, by index in `specs`

    @property
    def missing(self) -> list[int]:
        """The groups that were not returned yet."""
        return list(self._places)

    def add(self, place: int, trajectory: Trajectory) -> list[Trajectory] | None:
        """The group that `trajectory`, the episode of `specs[place]`, completes, in the order of the specs; else None.

        If an episode arrives twice, because its worker died and a new one played its share, the first is kept.
        """
        group = self._specs[place].group
        places = self._places.get(group)
        if places is None:
            return None
        self._held.setdefault(place, trajectory)
        if not all(each in self._held for each in places):
            return None
        del self._places[group]
        return [self._held.pop(each) for each in places]
