"""Groups put together from episodes that come in any order, from several workers, some of them twice."""

from __future__ import annotations

from collections.abc import Sequence

from rlpost.types import EpisodeSpec, Trajectory


class GroupAssembler:
    """Hands out each group of `specs` once, when its last episode has come."""

    def __init__(self, specs: Sequence[EpisodeSpec]) -> None:
        self._specs = specs
        self._places: dict[
            int, list[int]
        ] = {}  # of a group that was not handed out: where it stands in `specs`
        for place, spec in enumerate(specs):
            self._places.setdefault(spec.group, []).append(place)
        self._held: dict[int, Trajectory] = {}  # by place, of groups that are not whole

    @property
    def missing(self) -> list[int]:
        """The groups that are not handed out."""
        return list(self._places)

    def add(self, place: int, trajectory: Trajectory) -> list[Trajectory] | None:
        """The group that `trajectory`, of the episode at `place`, completes, in the order of the specs; else None.

        Of an episode that comes again, since its worker died and a new one plays its share, the first is kept.
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
