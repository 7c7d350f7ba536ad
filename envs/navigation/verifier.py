"""The mended verifier of the rail: bounded, with one outcome per attempt and true feedback."""

from __future__ import annotations

from rlpost.envs.navigation.actions import STOP, Action, read_action
from rlpost.envs.navigation.feedback import sentence
from rlpost.envs.navigation.outcomes import Outcome, Verdict
from rlpost.envs.navigation.parsing import Answer, read_answer
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.navigation.rules import Words

REWARDS = {
    Outcome.CORRECT: 1.0,
    Outcome.ARRIVED: 1.0,
    Outcome.WRONG_ACTION: -1.0,
    Outcome.ILLEGAL_ACTION: -1.0,
    Outcome.NO_ACTION: -1.0,
    Outcome.TOO_LONG: -1.0,
    Outcome.IMAGINED_INTERSECTION: -1.5,
    Outcome.MISSED_INTERSECTION: -1.5,
    Outcome.RECOVERED: 0.0,
    Outcome.ASTRAY: -1.0,
    Outcome.NO_WAY: -1.0,
    Outcome.STOPPED_SHORT: -1.0,
}


def is_legal(action: Action, rule: Words) -> bool:
    return not action.word or action.word in rule.words


def verdict(outcome: Outcome, rule: Words, action: str | None = None) -> Verdict:
    return Verdict(outcome, REWARDS[outcome], sentence(outcome, action or "the action", rule), action)


def legal_action(answer: Answer | Outcome, rule: Words) -> Action | Verdict:
    """The action of an answer, or the verdict if it has no action of the action space."""
    if isinstance(answer, Outcome):
        return verdict(answer, rule)
    action = read_action(answer.action)
    if action is None or not is_legal(action, rule):
        return verdict(Outcome.ILLEGAL_ACTION, rule, None if action is None else str(action))
    return action


def grade(text: str, entry: Entry, rule: Words) -> Verdict:
    """Grade one answer at a place of the rail. Never raises on any string; the work is bounded."""
    answer = read_answer(text)
    action = legal_action(answer, rule)
    if isinstance(action, Verdict):
        return action
    assert isinstance(answer, Answer)
    if action == entry.action:
        return verdict(Outcome.ARRIVED if action == STOP else Outcome.CORRECT, rule, str(action))
    observed = "intersection" in answer.observation.lower()
    if observed == entry.view.intersection:
        return verdict(Outcome.WRONG_ACTION, rule, str(action))
    missed = Outcome.IMAGINED_INTERSECTION if observed else Outcome.MISSED_INTERSECTION
    return verdict(missed, rule, str(action))
