"""Golden rows of the mended verifier: every outcome, reward and sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlpost.envs.navigation.actions import FORWARD, STOP, Action, read_action, turned
from rlpost.envs.navigation.feedback import sentence
from rlpost.envs.navigation.geometry import Place
from rlpost.envs.navigation.outcomes import Outcome
from rlpost.envs.navigation.parsing import Answer, read_answer
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.navigation.rules import Rule
from rlpost.envs.navigation.trips import View
from rlpost.envs.navigation.verifier import REWARDS, grade


def _entry(action: Action, intersection: bool) -> Entry:
    return Entry(View(Place(0, 0), 0, None, intersection), action, 1, "No landmark nearby")


CROSSING, STREET = _entry(turned("left"), True), _entry(FORWARD, False)
SPACE = (
    "the action must be forward(), stop() or turn_direction(x), "
    "where x is one of left, slightly left, slightly right, right."
)


def _answer(action: object, observation: str = "") -> str:
    return json.dumps({"observation": observation, "action": action})


ROWS = [
    (CROSSING, _answer("turn_direction(left)"), Outcome.CORRECT, 1.0, "the action is right."),
    (_entry(STOP, True), _answer("stop()"), Outcome.ARRIVED, 1.0, "you have arrived."),
    (CROSSING, _answer("forward()", "intersection"), Outcome.WRONG_ACTION, -1.0, "forward() is wrong here."),
    (
        CROSSING,
        _answer("turn_direction(slightly left)", "An Intersection"),
        Outcome.WRONG_ACTION,
        -1.0,
        "turn_direction(slightly left) is wrong here.",
    ),
    (STREET, _answer("stop()", "a mill"), Outcome.WRONG_ACTION, -1.0, "stop() is wrong here."),
    (CROSSING, _answer("stop()", "a mill"), Outcome.MISSED_INTERSECTION, -1.5, "you are at an intersection."),
    (CROSSING, '{"action": "stop()"}', Outcome.MISSED_INTERSECTION, -1.5, "you are at an intersection."),
    (
        STREET,
        json.dumps({"current observation": "an intersection", "action": "stop()"}),
        Outcome.IMAGINED_INTERSECTION,
        -1.5,
        "you are not at an intersection.",
    ),
    (CROSSING, _answer("turn_direction(north)", "intersection"), Outcome.ILLEGAL_ACTION, -1.0, SPACE),
    (CROSSING, _answer("turn_direction()"), Outcome.ILLEGAL_ACTION, -1.0, SPACE),
    (CROSSING, _answer("fly()"), Outcome.ILLEGAL_ACTION, -1.0, SPACE),
    (CROSSING, "no idea", Outcome.NO_ACTION, -1.0, 'the answer has no "action".'),
    (CROSSING, _answer(None), Outcome.NO_ACTION, -1.0, 'the answer has no "action".'),
    (CROSSING, _answer(["stop()"]), Outcome.NO_ACTION, -1.0, 'the answer has no "action".'),
    (CROSSING, " " * 20_001, Outcome.TOO_LONG, -1.0, "the answer is too long."),
]


@pytest.mark.parametrize(("entry", "answer", "outcome", "reward", "feedback"), ROWS)
def test_rows(entry: Entry, answer: str, outcome: Outcome, reward: float, feedback: str) -> None:
    verdict = grade(answer, entry, Rule.RELATIVE)
    assert (verdict.outcome, verdict.reward, verdict.feedback) == (outcome, reward, feedback)


def test_a_true_observation_at_an_intersection_is_never_contradicted() -> None:
    """The published fault: it is told that there is none."""
    for action in ("forward()", "stop()", "turn_direction(right)"):
        told = grade(_answer(action, "facing north, intersection"), CROSSING, Rule.RELATIVE).feedback
        assert "intersection" not in told


def test_every_mended_outcome_has_a_reward_a_sentence_and_a_meaning() -> None:
    for outcome in REWARDS:
        assert sentence(outcome, "forward()", Rule.ABSOLUTE).endswith(".")
        assert outcome.meaning.endswith(".")
    assert set(Outcome) - set(REWARDS) == {
        *(Outcome.STEP_LIMIT, Outcome.CRASH),
        *(Outcome.RULE_MISREAD, Outcome.STATED_RULE),
    }


READ = [
    ("forward()", FORWARD),
    (" STOP( ) ", STOP),
    ("turn_direction(north)", turned("north")),
    ("turn_direction( 'slightly left' )", turned("slightly left")),
    ('turn_direction("east")', turned("east")),
    ("turn_direction(up)", turned("up")),
    ("turn_direction()", None),
    ("forward", None),
    ("forward() stop()", None),
    ("turn_direction(a b c)", None),
    ("forward(3)", None),
]


@pytest.mark.parametrize(("text", "action"), READ)
def test_actions_are_read_tolerantly(text: str, action: Action | None) -> None:
    assert read_action(text) == action


FOUND = [
    ('{"observation": "a", "action": "stop()"}', Answer("stop()", "a")),
    ('{"action": "forward()"} no: {"action": "stop()", "current observation": "b"}', Answer("stop()", "b")),
    ('\n{\n"current observation": "a; b",\n"action": "stop()",\n}', Answer("stop()", "a; b")),
    ("{'observation': 'it is', 'action': 'stop()',}", Answer("stop()", "it is")),
    ('{"action": turn_direction(slightly left),\n}', Answer("turn_direction(slightly left)", "")),
    ('"action": stop()', Answer("stop()", "")),
    ('{"observation": 3, "action": "stop()"}', Answer("stop()", "3")),
    ('{"observation": ["x"], "action": "stop()"}', Answer("stop()", "")),
]


@pytest.mark.parametrize(("text", "answer"), FOUND)
def test_answers_are_read_tolerantly(text: str, answer: Answer) -> None:
    assert read_answer(text) == answer


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(codec=None), max_size=100), st.text(max_size=100))
def test_any_fields_survive_strict_json(action: str, observation: str) -> None:
    assert read_answer("so\n" + _answer(action, observation)) == Answer(action, observation)
