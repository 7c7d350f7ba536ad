"""Golden rows of the published verifier, from the table of the specification."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.envs.choices import Mode
from rlpost.envs.navigation.actions import FORWARD, STOP, Action, turned
from rlpost.envs.navigation.compat import find_field, grade, step_limit
from rlpost.envs.navigation.geometry import Place
from rlpost.envs.navigation.outcomes import Outcome
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.navigation.rules import Rule
from rlpost.envs.navigation.sessions import OnRail
from rlpost.envs.navigation.trips import View

FORM = 'Answer in the form {"current observation": ..., "current instruction": ..., "action": ...}.'
NOT_THERE = f"you are not at any intersection, so do not observe one. {FORM}"
THERE = f"you are at an intersection, so do not observe otherwise. {FORM}"
WRONG = f"the action is incorrect, so do not take it again. {FORM}"


def _entry(action: Action, landmarks: str = "No landmark nearby", intersection: bool = True) -> Entry:
    return Entry(View(Place(0, 0), 0, None, intersection), action, 1, landmarks)


def _answer(action: object, observation: object = "No landmark nearby; You observe an intersection") -> str:
    return json.dumps({"current observation": observation, "current instruction": "any", "action": action})


def _published(action: str, observation: str = "No landmark nearby; ") -> str:
    return f'\n{{\n"current observation": "{observation}",\n"current instruction": "x",\n"action": "{action}",\n}}'


NORTH = _entry(turned("north"))
AT_CORNER = "the Intersection Cafe, intersection of all, is on your left"
ROWS = [
    # row 1: the exact string, and nothing else of the answer matters
    (NORTH, _answer("turn_direction(north)"), Outcome.CORRECT, 1.0, "the action is correct."),
    (NORTH, _published("turn_direction(north)", "anything"), Outcome.CORRECT, 1.0, None),
    (NORTH, _answer("turn_direction(north)", 7), Outcome.CORRECT, 1.0, None),
    (NORTH, 'text "action": "turn_direction(north)"', Outcome.CORRECT, 1.0, None),
    (_entry(STOP), _answer("stop()"), Outcome.ARRIVED, 1.0, "the action is correct."),
    (_entry(FORWARD), _answer("forward()"), Outcome.CORRECT, 1.0, None),
    # row 2: an intersection observed, which the landmark part never has; even where there is one
    (NORTH, _answer("forward()"), Outcome.IMAGINED_INTERSECTION, -1.5, NOT_THERE),
    (_entry(FORWARD, intersection=False), _answer("stop()"), Outcome.IMAGINED_INTERSECTION, -1.5, NOT_THERE),
    (NORTH, _published("stop()", "an intersection"), Outcome.IMAGINED_INTERSECTION, -1.5, NOT_THERE),
    # row 3: reachable only by a landmark that is called so
    (_entry(STOP, AT_CORNER), _answer("forward()", "no"), Outcome.MISSED_INTERSECTION, -1.5, THERE),
    (_entry(STOP, AT_CORNER), _answer("forward()"), Outcome.WRONG_ACTION, -1.0, WRONG),
    # row 4
    (NORTH, _answer("forward()", "nothing"), Outcome.WRONG_ACTION, -1.0, WRONG),
    (NORTH, _answer("turn_direction( north)", "nothing"), Outcome.WRONG_ACTION, -1.0, WRONG),
    (NORTH, _answer("Turn_direction(north)", "Intersection"), Outcome.WRONG_ACTION, -1.0, WRONG),
    (NORTH, "no idea", Outcome.WRONG_ACTION, -1.0, WRONG),
    (NORTH, "", Outcome.WRONG_ACTION, -1.0, WRONG),
    (
        NORTH,
        '{"action":"turn_direction(north)",}',
        Outcome.WRONG_ACTION,
        -1.0,
        WRONG,
    ),  # no space after the colon
    (NORTH, "{'action': 'turn_direction(north)'}", Outcome.WRONG_ACTION, -1.0, WRONG),
    (NORTH, _answer(None, "x"), Outcome.WRONG_ACTION, -1.0, WRONG),
    (NORTH, "[" * 19_000, Outcome.WRONG_ACTION, -1.0, WRONG),
    # the word is looked for by Python's `in`: among a list's items, among an object's keys
    (NORTH, _answer("stop()", ["intersection"]), Outcome.IMAGINED_INTERSECTION, -1.5, NOT_THERE),
    (NORTH, _answer("stop()", {"intersection": 0}), Outcome.IMAGINED_INTERSECTION, -1.5, NOT_THERE),
    (NORTH, _answer("stop()", ["an intersection"]), Outcome.WRONG_ACTION, -1.0, WRONG),
    (NORTH, _answer("stop()", {"seen": "intersection"}), Outcome.WRONG_ACTION, -1.0, WRONG),
    (_entry(STOP, AT_CORNER), _answer("forward()", []), Outcome.MISSED_INTERSECTION, -1.5, THERE),
    (NORTH, _answer("turn_direction(north)", ["intersection"]), Outcome.CORRECT, 1.0, None),
    # beyond the published table
    (NORTH, _answer("forward()", True), Outcome.CRASH, -1.0, None),
    (NORTH, _answer("forward()", 7), Outcome.CRASH, -1.0, None),
    (NORTH, _answer("forward()", None), Outcome.CRASH, -1.0, None),
    (NORTH, " " * 20_001, Outcome.TOO_LONG, -1.0, None),
]


@pytest.mark.parametrize(("entry", "answer", "outcome", "reward", "feedback"), ROWS)
def test_rows(entry: Entry, answer: str, outcome: Outcome, reward: float, feedback: str | None) -> None:
    verdict = grade(answer, entry)
    assert (verdict.outcome, verdict.reward) == (outcome, reward)
    if feedback is not None:
        assert verdict.feedback == feedback


def test_row_5() -> None:
    assert (step_limit().outcome, step_limit().reward) == (Outcome.STEP_LIMIT, -1.0)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"action": "a", "action": "b"}', "b"),
        ('x {"action": "a"} then {"action": "b"}', "a"),
        ('{"action" : "a",}', "None"),
        ('"action": "a\nb"', "None"),
        ('"action"', "None"),
        ("[1]", "None"),
        ("3", "None"),
    ],
)
def test_what_the_published_parser_finds(answer: str, found: str) -> None:
    assert find_field(answer, "action") == found


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(codec=None), max_size=200))
def test_any_text_has_an_outcome(text: str) -> None:
    assert grade(text, NORTH).reward <= -1.0
    assert grade('{"action": "' + text, NORTH).reward <= 1.0


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("action", [FORWARD, STOP])
def test_at_the_limit_of_attempts_a_missed_stop_terminates_too(mode: Mode, action: Action) -> None:
    route = OnRail([_entry(action)], Rule.ABSOLUTE, mode, 2)
    *before, last = (route.take(_answer("no")) for _ in range(3 if mode is Mode.COMPAT else 2))
    assert not any(step.over for step in before)
    assert last.truncated
    assert last.terminated == (mode is Mode.COMPAT and action == STOP)
    assert last.verdict.outcome is not Outcome.ARRIVED, "which alone is success"
