"""The published verifier with all its faults (arXiv 2501.17161, appendix B.3).

The action is compared as a string. Of the observation only the word `intersection` is searched, and compared with the
landmark part of the truth, which never contains it. One attempt beyond the limit is punished without being read; if the
right action is to stop, it terminates as well as truncates. The sentences are our own.
"""

from __future__ import annotations

import json
import re

from rlpost.envs.navigation.actions import STOP
from rlpost.envs.navigation.outcomes import Outcome, Verdict
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.parsing import MAX_ANSWER

CORRECT = 1.0
WRONG_ACTION = -1.0
WRONG_INTERSECTION = -1.5
STEP_LIMIT = -1.0

_NOTHING_FOUND = "None"
_FORM = 'Answer in the form {"current observation": ..., "current instruction": ..., "action": ...}.'


def step_limit() -> Verdict:
    """Row 5: the attempt after the last graded one, whatever it contains."""
    return Verdict(Outcome.STEP_LIMIT, STEP_LIMIT, "the limit of attempts at one place is reached.")


def find_field(answer: str, key: str) -> object:
    """The text that the published parser reads as a field; any JSON value, if the answer is strict JSON."""
    try:
        found: object = json.loads(answer)[key]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        match = re.search(rf'"{key}": "(.*?)"', answer)
        found = match[1] if match else _NOTHING_FOUND
    return found


def grade(answer: str, entry: Entry) -> Verdict:
    """Grade one answer at a place of the rail. Never raises on any string.

    The word is searched with Python's `in`: within a text, among the items of a list, among the keys of an object. If
    the published code raises (a wrong action with any other observation), the outcome is CRASH, with the reward of a
    wrong action. Answers beyond MAX_ANSWER characters, which its own generation limit cannot produce, are TOO_LONG,
    with the same reward.
    """
    if len(answer) > MAX_ANSWER:
        return Verdict(Outcome.TOO_LONG, WRONG_ACTION, "the answer is too long.")
    action, observation = find_field(answer, "action"), find_field(answer, "current observation")
    tried = action if isinstance(action, str) else None
    if action == str(entry.action):
        outcome = Outcome.ARRIVED if entry.action == STOP else Outcome.CORRECT
        return Verdict(outcome, CORRECT, "the action is correct.", tried)
    if not isinstance(observation, str | list | dict):
        return Verdict(Outcome.CRASH, WRONG_ACTION, f"the observation is not a text. {_FORM}", tried)
    return _wrong(tried, "intersection" in observation, "intersection" in entry.landmarks)


def _wrong(tried: str | None, observed: bool, there: bool) -> Verdict:
    """Rows 2 to 4."""
    if observed and not there:
        told = f"you are not at any intersection, so do not observe one. {_FORM}"
        return Verdict(Outcome.IMAGINED_INTERSECTION, WRONG_INTERSECTION, told, tried)
    if there and not observed:
        told = f"you are at an intersection, so do not observe otherwise. {_FORM}"
        return Verdict(Outcome.MISSED_INTERSECTION, WRONG_INTERSECTION, told, tried)
    told = f"the action is incorrect, so do not take it again. {_FORM}"
    return Verdict(Outcome.WRONG_ACTION, WRONG_ACTION, told, tried)
