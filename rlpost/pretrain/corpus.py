"""What the bundled base model learns from: endless synthetic conversations of general skills.

No conversation states a rule that a registered variant uses (trained or held out) in the task that it belongs to, so
neither is privileged: the base meets J, Q, K as 10 or as 11, 12, 13, and a route to be walked by the compass or by
left and right, for the first time in a run.
"""

from __future__ import annotations

import random

from rlpost.pretrain import cards, streets
from rlpost.pretrain.talk import Conversation, Mixture, draw

STREETS = 0.25  # of the conversations; they are longer than the cards', and come to half of the tokens


def conversation(rng: random.Random) -> Conversation:
    """One conversation of either world."""
    mixture: Mixture = streets.MIXTURE if rng.random() < STREETS else cards.MIXTURE
    return draw(mixture, rng)


def states_reserved_rule(talk: Conversation) -> bool:
    """Whether any text states a registered variant's rule in its task. True for nothing that this package makes."""
    return cards.states_reserved_rule(talk) or streets.walks_by_reserved_rule(talk)
