"""The training corpus of the bundled base model: an endless stream of synthetic conversations about general skills.

No conversation states a rule that a registered variant (trained or held out) uses in its task, so neither kind of rule
has an advantage, and no cards are combined to a registered variant's target. The base model first meets J, Q, K as 10
or as 11, 12, 13, cards that make 24, and a route to be walked by the compass or by left and right, in a run.
"""

from __future__ import annotations

import random

from rlpost.pretrain import cards, streets
from rlpost.pretrain.talk import Conversation, Mixture, draw

# Share of the conversations. They are longer than those about cards, and make up 29% of the tokens.
STREETS = 0.2


def conversation(rng: random.Random) -> Conversation:
    """One conversation, about cards or streets."""
    mixture: Mixture = streets.MIXTURE if rng.random() < STREETS else cards.MIXTURE
    return draw(mixture, rng)


def states_reserved_rule(talk: Conversation) -> bool:
    """Whether any text states a registered variant's rule in its task. False for all that this package makes."""
    return cards.states_reserved_rule(talk) or streets.walks_by_reserved_rule(talk)
