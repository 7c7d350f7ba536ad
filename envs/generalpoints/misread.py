"""Detects failed attempts that apply the trained rule although another is stated, or a stated rule that is fake."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from rlpost.envs.generalpoints.deck import Deal
from rlpost.envs.generalpoints.outcomes import Outcome, Verdict
from rlpost.envs.generalpoints.variants import Variant


def follows(trained: Variant, verdict: Verdict, deal: Deal) -> bool:
    """Whether a wrong formula applies the trained rule: its numbers (if it deals as many cards) or its target."""
    if verdict.outcome is Outcome.WRONG_NUMBERS:
        used = Counter(verdict.numbers)
        return used.total() == trained.cards and used <= Counter(trained.values(deal.ranks))
    return deal.variant.target != trained.target and verdict.value == trained.target


def obeys(verdict: Verdict, deal: Deal) -> bool:
    """Whether a wrong formula uses the numbers of a fake rule, which the prompt states."""
    if deal.variant.stated is None or verdict.outcome is not Outcome.WRONG_NUMBERS:
        return False
    stated = replace(deal.variant, faces=deal.variant.stated)
    return Counter(verdict.numbers) == Counter(stated.values(deal.ranks))
