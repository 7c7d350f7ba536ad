"""Free movement: every action is carried out, a wrong one leads somewhere, and stopping near the end is arriving.

Only new progress is rewarded. A step earns what a right action on the rail earns if it goes further along the
instructed route, or nearer to the destination (in actions still needed), than any step before. So walking in circles
earns nothing.
"""

from __future__ import annotations

from rlpost.envs.navigation.actions import FORWARD, STOP, Action, turned
from rlpost.envs.navigation.city import City
from rlpost.envs.navigation.geometry import Place, distance
from rlpost.envs.navigation.outcomes import Outcome, Verdict
from rlpost.envs.navigation.parsing import read_answer
from rlpost.envs.navigation.rail import Entry
from rlpost.envs.navigation.routes import view
from rlpost.envs.navigation.rules import Rule
from rlpost.envs.navigation.sessions import Step
from rlpost.envs.navigation.trips import Trip
from rlpost.envs.navigation.verifier import legal_action, verdict
from rlpost.envs.navigation.walking import Pose, forward, turn

NEAR = 25.0  # m from the destination, as in V-IRL


def moved(city: City, pose: Pose, action: Action, rule: Rule) -> Pose | None:
    """The pose after an action; None if no street leads that way. A stop has no pose after it."""
    return forward(city, pose) if action == FORWARD else turn(city, pose, action.word, rule)


def plan(city: City, pose: Pose, goals: frozenset[int], rule: Rule) -> list[Action]:
    """The shortest list of actions to a goal, with the final stop (breadth first). Raises ValueError without a path."""
    moves = (FORWARD, *map(turned, rule.words))
    reached: dict[Pose, tuple[Pose, Action] | None] = {pose: None}
    waiting = [pose]
    for here in waiting:
        if here.node in goals:
            return [*_steps(here, reached), STOP]
        for action in moves:
            there = moved(city, here, action, rule)
            if there is not None and there not in reached:
                reached[there] = (here, action)
                waiting.append(there)
    raise ValueError(f"no actions lead from {pose} to any of {sorted(goals)}")


def _steps(pose: Pose, reached: dict[Pose, tuple[Pose, Action] | None]) -> list[Action]:
    steps: list[Action] = []
    step = reached[pose]
    while step is not None:
        pose, action = step
        steps.append(action)
        step = reached[pose]
    return steps[::-1]


class Instructed:
    """The poses of a trip in order, with the action and the instruction that leave each one."""

    def __init__(self, trip: Trip, city: City, rule: Rule) -> None:
        self.poses = [Pose(trip.nodes[0], trip.start.facing)]
        self.actions: list[Action] = []
        self.instructions: list[int] = []
        for number, leg in enumerate(trip.legs):
            facing = self.poses[-1].heading
            self._add(turned(rule.word(facing, leg.heading)), 2 * number + 1, city, rule)
            for _ in range(len(leg.passed) + 1):
                self._add(FORWARD, 2 * number + 2, city, rule)
        self.actions.append(STOP)
        self.instructions.append(2 * len(trip.legs))

    def _add(self, action: Action, instruction: int, city: City, rule: Rule) -> None:
        there = moved(city, self.poses[-1], action, rule)
        assert there is not None  # the trip was walked when it was made
        self.poses.append(there)
        self.actions.append(action)
        self.instructions.append(instruction)


class OnFoot:
    """A trip walked freely through its city. It ends with a stop, or after a limited number of actions."""

    def __init__(self, trip: Trip, city: City, rule: Rule, slack: int) -> None:
        self._city, self._rule = city, rule
        self._way = Instructed(trip, city, rule)
        near = (node for node, place in enumerate(city.nodes) if distance(place, trip.destination) <= NEAR)
        self._goals = frozenset(near)
        self._pose, self._furthest, self._instruction = self._way.poses[0], 0, 1
        self._walked: tuple[Place, ...] = (city.nodes[self._pose.node],)
        self._needed: dict[Pose, int] = {}
        self._nearest = self._actions_needed(self._pose)
        self._steps, self._limit = 0, 2 * len(self._way.poses) + slack

    @property
    def now(self) -> Entry:
        here = view(self._city, self._pose)
        if self._pose in self._way.poses:
            place = self._way.poses.index(self._pose)
            action, instruction = self._way.actions[place], self._way.instructions[place]
        else:
            action = plan(self._city, self._pose, self._goals, self._rule)[0]
            instruction = self._instruction
        told = "No landmark nearby" if here.sighting is None else here.sighting.sentence
        return Entry(here, action, instruction, told)

    @property
    def walked(self) -> tuple[Place, ...]:
        return self._walked

    def take(self, answer: str) -> Step:
        self._steps += 1
        action = legal_action(read_answer(answer), self._rule)
        found = action if isinstance(action, Verdict) else self._act(action)
        stopped = found.outcome in (Outcome.ARRIVED, Outcome.STOPPED_SHORT)
        walked = found.outcome in (Outcome.CORRECT, Outcome.RECOVERED, Outcome.ASTRAY)
        return Step(found, stopped, not stopped and self._steps >= self._limit, walked, 1)

    def _actions_needed(self, pose: Pose) -> int:
        if pose not in self._needed:
            self._needed[pose] = len(plan(self._city, pose, self._goals, self._rule))
        return self._needed[pose]

    def _act(self, action: Action) -> Verdict:
        if action == STOP:
            near = self._pose.node in self._goals
            return self._verdict(Outcome.ARRIVED if near else Outcome.STOPPED_SHORT, action)
        there = moved(self._city, self._pose, action, self._rule)
        if there is None:
            return self._verdict(Outcome.NO_WAY, action)
        return self._verdict(self._progress(there), action)

    def _verdict(self, outcome: Outcome, action: Action) -> Verdict:
        return verdict(outcome, self._rule, str(action))

    def _progress(self, there: Pose) -> Outcome:
        """Go there. New progress along the way or towards its end is CORRECT."""
        before, after = self._actions_needed(self._pose), self._actions_needed(there)
        further = there in self._way.poses and self._way.poses.index(there) > self._furthest
        nearer = after < self._nearest
        self._move(there, after)
        if further or nearer:
            return Outcome.CORRECT
        return Outcome.RECOVERED if after < before else Outcome.ASTRAY

    def _move(self, there: Pose, needed: int) -> None:
        self._nearest = min(self._nearest, needed)
        if there in self._way.poses:
            place = self._way.poses.index(there)
            self._furthest, self._instruction = max(self._furthest, place), self._way.instructions[place]
        if there.node != self._pose.node:
            self._walked = (*self._walked, self._city.nodes[there.node])
        self._pose = there
