"""Whether a failed attempt is the trained rule applied, where the stated rule says otherwise."""

from __future__ import annotations

from collections import Counter

from rlpost.envs.generalpoints.deck import Deal
from rlpost.envs.generalpoints.outcomes import Outcome, Verdict
from rlpost.envs.generalpoints.variants import Variant


def follows(trained: Variant, verdict: Verdict, deal: Deal) -> bool:
    """A wrong formula that the trained rule asks for: its numbers for as many cards as it deals, or its target."""
    if verdict.outcome is Outcome.WRONG_NUMBERS:
        used = Counter(verdict.numbers)
        return used.total() == trained.cards and used <= Counter(trained.values(deal.ranks))
    return deal.variant.target != trained.target and verdict.value == trained.target
