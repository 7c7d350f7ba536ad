"""Expert conversations for supervised learning: a route walked to its end, with or without a wrong attempt."""

from __future__ import annotations

import copy
import random

from rlpost.envs.base import ExpertTurn
from rlpost.envs.navigation.actions import FORWARD, STOP, Action, turned
from rlpost.envs.navigation.prompts import Texts
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.navigation.sessions import Session


def wrong_action(entry: Entry, texts: Texts, rng: random.Random) -> Action:
    """An action of the action space that is wrong, and not a stop, since a stop might end the route."""
    choices = [FORWARD, *map(turned, texts.rule.words)]
    if entry.action not in (FORWARD, STOP) and rng.random() < 0.5:
        return FORWARD
    return rng.choice([action for action in choices if action != entry.action])


def demonstrate(session: Session, texts: Texts, revision: bool, rng: random.Random) -> list[ExpertTurn]:
    """The conversation from the session's current place to the end of the route. The session itself does not move.

    With `revision` one place, drawn at random from the first few, first gets a wrong attempt (learn=False). In free
    movement the expert continues from where that attempt led.
    """
    session = copy.copy(session)
    history: list[Entry] = [session.now]
    turns: list[ExpertTurn] = []
    observation, over = texts.first(session.now), False
    wrong_at = rng.randrange(2 * len(texts.trip.legs)) if revision else -1
    while not over:
        wrong = len(turns) == wrong_at
        action = wrong_action(session.now, texts, rng) if wrong else session.now.action
        answer = texts.answer(session.now, action)
        turns.append((observation, answer, not wrong))
        step = session.take(answer)
        over = step.over
        if not over and step.moved:
            history.append(session.now)
        if not over:
            observation = texts.later(history) if step.moved else texts.failed(step.verdict.feedback)
    return turns
