"""A player that knows only the texts: what is told must be enough to walk every route, under either rule."""

from __future__ import annotations

import json
import re

WORDS = ["north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest"]
TURNS = {1: "slightly right", 2: "right", 3: "right", 5: "left", 6: "left", 7: "slightly left"}


class Reader:
    """Reads the short prompt once, then one observation at a time. On the rail a turn already leads on."""

    def __init__(self, prompt: str) -> None:
        told = re.fullmatch(r"Follow: (.*)\. Turn: (.*)\. Now: (.*)\.", prompt)
        assert told is not None, prompt
        self._instructions = [each.partition(" ")[2] for each in told[1].split(", ")]
        self._relative = "left" in told[2].split(", ")
        self._place = 0

    def answer(self, observation: str) -> str:
        seen = observation.partition("Now: ")[2].removesuffix(".").split(", ")
        assert seen[0].startswith("facing "), observation
        action = self._act(
            seen[0].removeprefix("facing "), seen[1].partition(" on ")[0], "intersection" in seen
        )
        return json.dumps({"observation": ", ".join(seen), "action": action})

    def _act(self, facing: str, landmark: str, intersection: bool) -> str:
        kind, _, goal = self._instructions[self._place].partition(" ")
        if kind == "face":
            self._place += 1
            return f"turn_direction({self._turn(facing, goal)})"
        goal = goal.removeprefix("to ").removeprefix("at ")
        if goal != landmark and not (goal == "next intersection" and intersection):
            return "forward()"
        if kind == "stop":
            return "stop()"
        self._place += 1
        return self._act(facing, landmark, intersection)

    def _turn(self, facing: str, goal: str) -> str:
        if not self._relative:
            return goal
        return TURNS[(WORDS.index(goal) - WORDS.index(facing)) % 8]
