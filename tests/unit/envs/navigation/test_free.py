from __future__ import annotations

import copy
import json
import random
from collections import deque

import pytest

from rlpost.envs.navigation.actions import FORWARD, STOP, Action, turned
from rlpost.envs.navigation.env import Navigation
from rlpost.envs.navigation.free import OnFoot, moved, plan
from rlpost.envs.navigation.generator import generate
from rlpost.envs.navigation.rules import Rule
from rlpost.envs.navigation.walking import Pose
from tests.unit.envs.navigation.town import TOWN, town_trip


def _session(rule: Rule = Rule.ABSOLUTE, slack: int = 6) -> OnFoot:
    return OnFoot(town_trip(330), TOWN, rule, slack)


def _take(session: OnFoot, action: str) -> tuple[str, float, bool, bool]:
    step = session.take(json.dumps({"action": action}))
    return step.verdict.outcome.name, step.verdict.reward, step.terminated, step.truncated


WALKS = [
    # along the instructions
    [
        ("turn_direction(north)", "CORRECT", 1.0),
        ("forward()", "CORRECT", 1.0),
        ("turn_direction(east)", "CORRECT", 1.0),
        ("forward()", "CORRECT", 1.0),
        ("stop()", "ARRIVED", 1.0),
    ],
    # past the turn and back again: nothing is earned twice
    [
        ("turn_direction(north)", "CORRECT", 1.0),
        ("forward()", "CORRECT", 1.0),
        ("forward()", "ASTRAY", -1.0),
        ("turn_direction(east)", "ASTRAY", -1.0),
        ("turn_direction(south)", "RECOVERED", 0.0),
        ("forward()", "RECOVERED", 0.0),
        ("turn_direction(east)", "CORRECT", 1.0),
        ("forward()", "CORRECT", 1.0),
        ("stop()", "ARRIVED", 1.0),
    ],
    [
        ("forward()", "NO_WAY", -1.0),
        ("turn_direction(west)", "NO_WAY", -1.0),
        ("stop()", "STOPPED_SHORT", -1.0),
    ],
    [("turn_direction(left)", "ILLEGAL_ACTION", -1.0), ("fly()", "ILLEGAL_ACTION", -1.0)],
]


@pytest.mark.parametrize("walk", WALKS)
def test_walks(walk: list[tuple[str, str, float]]) -> None:
    session = _session()
    for action, outcome, reward in walk:
        name, earned, terminated, truncated = _take(session, action)
        assert (name, earned) == (outcome, reward)
        assert terminated == (outcome in ("ARRIVED", "STOPPED_SHORT"))
        assert not truncated


def test_the_way_walked_is_kept() -> None:
    session = _session()
    for action in ("turn_direction(north)", "forward()", "forward()"):
        _take(session, action)
    assert session.walked == ((0, 0), (0, 100), (0, 200))
    assert session.now.view.facing == 90  # the street bends here
    before = copy.copy(session)
    _take(session, "turn_direction(south)")
    assert (before.now.view.facing, session.now.view.facing) == (90, 180)


def test_the_expert_comes_back_from_anywhere() -> None:
    session = _session()
    for action in ("turn_direction(north)", "forward()", "forward()"):
        _take(session, action)
    taken = []
    while (action := session.now.action) != STOP:
        taken.append(str(action))
        _take(session, str(action))
    assert taken == ["turn_direction(south)", "forward()", "turn_direction(east)", "forward()"]


def test_too_many_actions_truncate() -> None:
    session = _session(slack=1)
    limit = 2 * 5 + 1  # five poses on the way
    for number in range(1, limit + 1):
        *_, terminated, truncated = _take(session, "nothing()")
        assert (terminated, truncated) == (False, number == limit)


def _needed(pose: Pose, goals: set[int], rule: Rule, seed: int) -> int:
    """The fewest actions by a plain search over histories."""
    city = generate("grid", seed)
    waiting = deque([(pose, 0)])
    seen = {pose}
    while waiting:
        here, count = waiting.popleft()
        if here.node in goals:
            return count + 1
        for action in [FORWARD, *(turned(word) for word in rule.words)]:
            there = moved(city, here, action, rule)
            if there is not None and there not in seen:
                seen.add(there)
                waiting.append((there, count + 1))
    raise AssertionError("out of reach")


@pytest.mark.parametrize("rule", list(Rule))
def test_plans_are_shortest_and_lead_to_the_goal_from_every_street(rule: Rule) -> None:
    for seed in range(3):
        city = generate("grid", seed)
        goals = frozenset({len(city.nodes) - 1})
        for node, ways in enumerate(city.ways):
            pose = Pose(node, ways[0].heading)
            actions = plan(city, pose, goals, rule)
            assert len(actions) == _needed(pose, set(goals), rule, seed)
            assert actions[-1] == STOP
            here: Pose | None = pose
            for action in actions[:-1]:
                assert here is not None
                here = moved(city, here, action, rule)
            assert here is not None
            assert here.node in goals


def test_random_walks_earn_no_more_than_the_instructed_one() -> None:
    """New progress only: whatever is done, the sum is bounded, so walking in circles does not pay."""
    env, rng = Navigation(movement="free"), random.Random(0)
    for seed in range(12):
        env.reset(seed=seed, options={"variant": ("absolute", "relative")[seed % 2]})
        best = len(env.expert(False, random.Random(0)))
        moves: list[Action] = [FORWARD, FORWARD, *map(turned, env.texts.rule.words)]
        total, over = 0.0, False
        while not over:
            action = env.session.now.action if rng.random() < 0.5 else rng.choice(moves)
            _, reward, terminated, truncated, _ = env.step(json.dumps({"action": str(action)}))
            total, over = total + float(reward), terminated or truncated
        assert total <= best
