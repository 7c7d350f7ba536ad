"""The texts for the model and of the expert: prompts in two styles, answers in three forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rlpost.envs.choices import Mode
from rlpost.envs.navigation.actions import FORWARD, STOP, Action
from rlpost.envs.navigation.geometry import compass_word
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.navigation.rules import Rule, Words
from rlpost.envs.navigation.trips import Leg, Trip
from rlpost.envs.texts import UNEXPLAINED, retry


class PromptStyle(StrEnum):
    PUBLISHED = "published"  # the fields and the order of the published prompt, in our words
    SHORT = "short"  # few words, for small models


class AnswerForm(StrEnum):
    STEPS = "steps"  # strict JSON, with the headings before and after a turn ahead of the action
    DIRECT = "direct"  # strict JSON: observation, instruction, action
    PUBLISHED = "published"  # the published keys and layout: a trailing comma, not valid JSON


_TASK = """
[Task Description]
You are a skilled navigator. You are given instructions and, as text, what was observed and done so far.
First find the instruction that is to be carried out now, then choose the action that does so.

[Instruction]
{instructions}

[Action space]
"forward()": go one step forward
"turn_direction(x)": turn to a direction, where x is one of {words}
"stop()": the destination is reached

[Observations and actions sequence]
{sequence}

[Output]
{{
"current observation": what you observe now,
"current instruction": the instruction to carry out now,
"action": the action to take,
}}
"""


@dataclass(frozen=True)
class Texts:
    """Every text of one trip under one rule."""

    style: PromptStyle
    form: AnswerForm
    mode: Mode
    trip: Trip
    rule: Words  # as the prompt states it
    fake_rule: bool = False  # whether another rule scores

    def first(self, entry: Entry) -> str:
        """The first observation: the rule, the instructions and what the walker sees."""
        if self.style is PromptStyle.PUBLISHED:
            return self._published_prompt([entry])
        follow = ", ".join(self.instruction(number) for number in range(1, 2 * len(self.trip.legs) + 1))
        return f"Follow: {follow}. Turn: {', '.join(self.rule.words)}. Now: {self.seen(entry)}."

    @property
    def rebuilds(self) -> bool:
        """Whether an observation after a right action is a whole new prompt with all history, as published."""
        return self.style is PromptStyle.PUBLISHED and self.mode is Mode.COMPAT

    def later(self, history: Sequence[Entry]) -> str:
        """The observation after a right action. `history` has every place so far, ending with the current one."""
        if self.rebuilds:
            return self._published_prompt(history)
        if self.style is PromptStyle.PUBLISHED:
            return f"O_{len(history)}: {self.seen(history[-1])}\nA_{len(history)}: "
        return f"Now: {self.seen(history[-1])}."

    def failed(self, feedback: str) -> str:
        """The observation after a failed attempt. Under a fake rule it does not explain the failure."""
        return retry(UNEXPLAINED if self.fake_rule else feedback)

    def seen(self, entry: Entry) -> str:
        """The description of what is seen at a place."""
        if self.style is PromptStyle.SHORT:
            return _short_view(entry)
        crossing = "You observe an intersection" if entry.view.intersection else ""
        if self.mode is Mode.COMPAT:
            return f"{entry.landmarks}; {crossing}"
        facing = f"You face {compass_word(entry.view.facing)}"
        return "; ".join(part for part in (entry.landmarks, crossing, facing) if part)

    def instruction(self, number: int) -> str:
        """An instruction with its number, from 1. Turns have odd numbers, walks even ones."""
        index, walks = divmod(number - 1, 2)
        leg, last = self.trip.legs[index], index == len(self.trip.legs) - 1
        if self.style is PromptStyle.SHORT:
            return f"{number} " + (_short_walk(leg, last) if walks else f"face {leg.compass}")
        return f"{number}. " + (self._walk(leg, last) if walks else self._turn(index))

    def answer(self, entry: Entry, action: Action) -> str:
        """An answer in the expert's form. The action is not checked here, since wrong ones are practice material."""
        seen, instruction = self.seen(entry), self.instruction(entry.instruction)
        if self.form is AnswerForm.PUBLISHED:
            fields = {"current observation": seen, "current instruction": instruction, "action": str(action)}
            lines = "".join(
                f'"{key}": {json.dumps(value, ensure_ascii=False)},\n' for key, value in fields.items()
            )
            return f"\n{{\n{lines}}}"
        fields = {"observation": seen, "instruction": instruction}
        if self.form is AnswerForm.STEPS:
            fields["steps"] = self._steps(entry, action)
        return json.dumps({**fields, "action": str(action)}, ensure_ascii=False)

    def _steps(self, entry: Entry, action: Action) -> str:
        if action in (FORWARD, STOP):
            return "go on" if action == FORWARD else "there"
        leg = self.trip.legs[(entry.instruction - 1) // 2]
        return f"{compass_word(entry.view.facing)} to {leg.compass}"

    def _published_prompt(self, history: Sequence[Entry]) -> str:
        numbers = range(1, 2 * len(self.trip.legs) + 1)
        lines = []
        for number, entry in enumerate(history, 1):
            done = "" if number == len(history) else str(entry.action)
            lines += [f"O_{number}: {self.seen(entry)}", f"A_{number}: {done}"]
        return _TASK.format(
            instructions="\n".join(map(self.instruction, numbers)),
            words=", ".join(self.rule.words),
            sequence="\n".join(lines),
        )

    def _turn(self, index: int) -> str:
        leg = self.trip.legs[index]
        if self.mode is Mode.COMPAT:
            before = self.trip.legs[index - 1].heading if index else self.trip.start.facing
            told = f"turn {Rule.RELATIVE.published_word(before, leg.heading)} to face {leg.compass}"
        else:
            told = f"turn to face {leg.compass}" + (f", into {leg.street}" if leg.street else "")
        return f"First, {told}." if index == 0 else f"{told[0].upper()}{told[1:]}."

    def _walk(self, leg: Leg, last: bool) -> str:
        sighting, compat = leg.end.sighting, self.mode is Mode.COMPAT
        where = "" if sighting is None else f" where {sighting.sentence}"
        if last:
            named = where.replace(" where ", " where the destination ", 1) if compat else where
            return f"Move forward until you reach the destination{named}."
        passes = not compat and any(view.intersection for view in leg.passed)
        return f"Move forward until you reach the {'' if passes else 'next '}intersection{where}."


def _short_view(entry: Entry) -> str:
    sighting = entry.view.sighting
    parts = [f"facing {compass_word(entry.view.facing)}"]
    if sighting is None:
        parts.append("no landmark")
    else:
        parts.append(f"{sighting.landmark} on {sighting.side}" if sighting.side else sighting.landmark)
    return ", ".join([*parts, "intersection"] if entry.view.intersection else parts)


def _short_walk(leg: Leg, last: bool) -> str:
    goal = "next intersection" if leg.end.sighting is None else leg.end.sighting.landmark
    return f"stop at {goal}" if last else f"go to {goal}"
