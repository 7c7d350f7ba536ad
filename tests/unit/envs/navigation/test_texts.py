"""Texts that models are trained on, word for word: a changed one silently unlearns part of a trained model."""

from __future__ import annotations

from rlpost.envs.choices import Mode
from rlpost.envs.navigation.actions import STOP, turned
from rlpost.envs.navigation.prompts import AnswerForm, PromptStyle, Texts
from rlpost.envs.navigation.rail import mended_rail, published_rail
from rlpost.envs.navigation.rules import Rule
from tests.unit.envs.navigation.test_rail import Script
from tests.unit.envs.navigation.town import town_trip

TRIP = town_trip(330)
ALL_DROPPED = [0.0] * 10


def _texts(style: PromptStyle, form: AnswerForm, mode: Mode, rule: Rule) -> Texts:
    return Texts(style, form, mode, TRIP, rule)


def test_short_texts_of_a_route() -> None:
    texts = _texts(PromptStyle.SHORT, AnswerForm.STEPS, Mode.MENDED, Rule.RELATIVE)
    rail = mended_rail(TRIP, Rule.RELATIVE, Script(ALL_DROPPED))
    assert texts.first(rail[0]) == (
        "Follow: 1 face north, 2 go to Red Inn, 3 face east, 4 stop at Old Mill. "
        "Turn: left, slightly left, slightly right, right. Now: facing northwest, no landmark."
    )
    seen = [texts.later(rail[: number + 1]) for number in range(1, len(rail))]
    assert seen == [
        "Now: facing north, Red Inn on left front, intersection.",
        "Now: facing east, Old Mill on left.",
    ]
    assert [texts.answer(entry, entry.action) for entry in rail] == [
        '{"observation": "facing northwest, no landmark", "instruction": "1 face north", '
        '"steps": "northwest to north", "action": "turn_direction(slightly right)"}',
        '{"observation": "facing north, Red Inn on left front, intersection", "instruction": "3 face east", '
        '"steps": "north to east", "action": "turn_direction(right)"}',
        '{"observation": "facing east, Old Mill on left", "instruction": "4 stop at Old Mill", '
        '"steps": "there", "action": "stop()"}',
    ]


def test_short_texts_of_the_trained_rule() -> None:
    texts = _texts(PromptStyle.SHORT, AnswerForm.DIRECT, Mode.MENDED, Rule.ABSOLUTE)
    first = mended_rail(TRIP, Rule.ABSOLUTE, Script(ALL_DROPPED))[0]
    rule = "Turn: north, northeast, east, southeast, south, southwest, west, northwest."
    assert rule in texts.first(first)
    assert texts.answer(first, first.action) == (
        '{"observation": "facing northwest, no landmark", "instruction": "1 face north", '
        '"action": "turn_direction(north)"}'
    )


def test_places_between_show_the_street() -> None:
    texts = _texts(PromptStyle.SHORT, AnswerForm.STEPS, Mode.MENDED, Rule.ABSOLUTE)
    rail = mended_rail(TRIP, Rule.ABSOLUTE, Script([0.9, 0.9]))
    assert [str(entry.action) for entry in rail] == [
        "turn_direction(north)",
        "forward()",
        "turn_direction(east)",
        "forward()",
        "stop()",
    ]
    assert texts.later(rail[:2]) == "Now: facing north, no landmark."
    assert '"instruction": "2 go to Red Inn", "steps": "go on"' in texts.answer(rail[1], rail[1].action)


def test_the_published_prompt_has_the_published_fields() -> None:
    texts = _texts(PromptStyle.PUBLISHED, AnswerForm.PUBLISHED, Mode.COMPAT, Rule.RELATIVE)
    rail = published_rail(TRIP, Rule.RELATIVE, Script(ALL_DROPPED))
    lines = texts.later(rail).split("\n")
    assert [line for line in lines if line.startswith("[")] == [
        "[Task Description]",
        "[Instruction]",
        "[Action space]",
        "[Observations and actions sequence]",
        "[Output]",
    ]
    start = lines.index("[Instruction]")
    assert lines[start + 1 : start + 5] == [
        "1. First, turn left to face north.",  # 330 to 0 without wrap-around
        "2. Move forward until you reach the next intersection where Red Inn is on your left front.",
        "3. Turn right to face east.",
        "4. Move forward until you reach the destination where the destination Old Mill is on your left.",
    ]
    start = lines.index("[Observations and actions sequence]")
    assert lines[start + 1 : start + 7] == [
        "O_1: No landmarks nearby; ",
        "A_1: turn_direction(left)",
        "O_2: Red Inn is on your left front; You observe an intersection",
        "A_2: turn_direction(right)",
        "O_3: The destination Old Mill is on your left; ",
        "A_3: ",
    ]
    keys = [line.split(":")[0] for line in lines if line.startswith('"current') or line.startswith('"action')]
    assert keys == ['"current observation"', '"current instruction"', '"action"']
    assert "turn_direction(x)" in texts.first(rail[0])
    assert "where x is one of left, slightly left, slightly right, right" in texts.first(rail[0])
    assert texts.answer(rail[-1], STOP) == (
        '\n{\n"current observation": "The destination Old Mill is on your left; ",\n"current instruction": '
        '"4. Move forward until you reach the destination where the destination Old Mill is on your left.",\n'
        '"action": "stop()",\n}'
    )


def test_mended_the_published_prompt_prints_no_relative_answer() -> None:
    texts = _texts(PromptStyle.PUBLISHED, AnswerForm.DIRECT, Mode.MENDED, Rule.RELATIVE)
    rail = mended_rail(TRIP, Rule.RELATIVE, Script(ALL_DROPPED))
    told = texts.first(rail[0]).partition("[Action space]")[0]
    assert "1. First, turn to face north, into Main Street.\n" in told
    assert "4. Move forward until you reach the destination where Old Mill is on your left." in told
    turns = [line for line in told.split("\n") if "turn " in line.lower()]
    assert not [line for line in turns if "left" in line or "right" in line]
    assert texts.later(rail[:2]) == (
        "O_2: Red Inn is on your left front; You observe an intersection; You face north\nA_2: "
    )
    assert '"steps"' not in texts.answer(rail[0], turned("left"))
