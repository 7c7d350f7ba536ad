"""Sample episodes for a report: the same deal as played by different policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlpost.pages.images import Image
from rlpost.types import Trajectory


@dataclass(frozen=True)
class Deal:
    """One deal as played by different policies, or at different stages. `change` says how the results compare."""

    first: Trajectory
    change: str
    played: Mapping[str, Trajectory]  # by policy
    pictures: Mapping[str, Image] = field(default_factory=dict)  # of the episode's end, by policy


def choose(policies: Mapping[str, Sequence[Trajectory]], most: int) -> list[Deal]:
    """Choose the first deal of each kind of change, those on which the policies differ first; then further ones.

    Deals that some policy did not play are left out, since there is nothing to compare.
    """
    by_deal = [{(t.instance, t.episode): t for t in episodes} for episodes in policies.values()]
    deals = []
    for key in by_deal[0] if by_deal else ():
        if all(key in each for each in by_deal):
            played = {policy: each[key] for policy, each in zip(policies, by_deal, strict=True)}
            deals.append(Deal(by_deal[0][key], _change(played), played))
    firsts = {deal.change: deal for deal in reversed(deals)}
    wanted = sorted(firsts.values(), key=_interest)
    return (wanted + [deal for deal in deals if deal not in wanted])[:most]


def _interest(deal: Deal) -> tuple[bool, bool, tuple[bool, ...]]:
    """A sort key, smallest for the most informative deals: policies differ and the last solves it; else failures."""
    solved = tuple(t.success for t in deal.played.values())
    alike = len(set(solved)) == 1
    return alike, solved[-1] if alike else not solved[-1], solved


def _change(played: Mapping[str, Trajectory]) -> str:
    solved = [policy for policy, episode in played.items() if episode.success]
    if len(solved) in (0, len(played)):
        return "solved" if solved else "not solved"
    if len(played) > 2:
        return f"solved by {' and '.join(solved)} only"
    return "newly solved" if solved[0] == list(played)[-1] else "lost"
