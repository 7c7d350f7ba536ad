"""Scripted players of the real environments: one applies the trained rule, one reads the rule and fails otherwise."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rlpost.envs import registry
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.generalpoints.variants import VARIANTS
from rlpost.envs.navigation.actions import FORWARD, STOP
from rlpost.envs.navigation.env import Navigation
from rlpost.envs.navigation.rules import Rule
from rlpost.types import Ending, Trajectory
from tests.unit.episodes import episode, turn

Player = Callable[[Any], str | None]
"""The answer to what an environment shows now; None where the player has none."""

TRAINED = VARIANTS["faces_10"]


def old_cards(env: GeneralPoints) -> str | None:
    """24 with four of the cards, faces as 10. Where no four make 24: none, if only the target tells the rules apart."""
    hands = list(itertools.combinations(TRAINED.values(env.deal.ranks), TRAINED.cards))
    solutions = [found[0].formula() for found in (solve(hand, TRAINED.target) for hand in hands) if found]
    if not solutions and env.deal.variant.target != TRAINED.target:
        return None
    return json.dumps({"formula": solutions[0] if solutions else "+".join(map(str, hands[0]))})


def obeys_cards(env: GeneralPoints) -> str:
    """The stated rule applied: a formula with its numbers that makes the target, or their sum if there is none."""
    variant = env.deal.variant
    values = replace(variant, faces=variant.stated_faces).values(env.deal.ranks)
    solutions = solve(values, variant.target)
    return json.dumps({"formula": solutions[0].formula() if solutions else "+".join(map(str, values))})


def reads_cards(env: GeneralPoints) -> str:
    """The stated rule's numbers, all of them, with a sum that is neither target; or, now and then, no arithmetic."""
    values = env.deal.values
    formulas = ("+".join(map(str, values)), "*".join(map(str, values)), "-".join(map(str, values)))
    right = [f for f in formulas if eval_small(f) not in (TRAINED.target, env.deal.variant.target)]
    return json.dumps({"formula": right[0] if sum(values) % 3 else right[0] + "+"})


def eval_small(formula: str) -> int:
    """Of a formula with a single operator, left to right."""
    operator = next(each for each in "+*-" if each in formula)
    first, *rest = map(int, formula.split(operator))
    for number in rest:
        first = {"+": first + number, "*": first * number, "-": first - number}[operator]
    return first


def old_turns(env: Navigation) -> str:
    """The right action, but every turn by the compass."""
    now = env.session.now
    if now.action in (FORWARD, STOP):
        return _action(env, str(now.action))
    leg = env.texts.trip.legs[(now.instruction - 1) // 2]
    return _action(env, f"turn_direction({Rule.ABSOLUTE.word(0, leg.heading)})")


def obeys_turns(env: Navigation) -> str:
    """The right action, with every turn in the words of the stated rule."""
    now = env.session.now
    if now.action in (FORWARD, STOP):
        return _action(env, str(now.action))
    leg = env.texts.trip.legs[(now.instruction - 1) // 2]
    return _action(env, f"turn_direction({env.texts.rule.word(now.view.facing, leg.heading)})")


def reads_turns(env: Navigation) -> str:
    """A turn in the stated rule's words, and a wrong one wherever a turn is due."""
    now = env.session.now
    if now.action in (FORWARD, STOP):
        return _action(env, str(now.action))
    wrong = [word for word in env.texts.rule.words if word != now.action.word]
    return _action(env, f"turn_direction({random.Random(len(wrong[0])).choice(wrong)})")


def _action(env: Navigation, action: str) -> str:
    seen = env.texts.seen(env.session.now)
    return json.dumps({"current observation": seen, "observation": seen, "action": action})


def play(name: str, variant: str, player: Player, seeds: range, **args: Any) -> list[Trajectory]:
    """Whole episodes; deals that the player has no answer to are left out."""
    env = registry.make(name, **args)
    played = (_episode(env, variant, player, seed) for seed in seeds)
    return [each for each in played if each is not None]


def _episode(env: Any, variant: str, player: Player, seed: int) -> Trajectory | None:
    _, info = env.reset(seed=seed, options={"variant": variant, "split": "all"})
    turns, over, success = [], False, False
    while not over:
        answer = player(env.unwrapped)
        if answer is None:
            return None
        _, reward, terminated, truncated, info = env.step(answer)
        turns.append(turn(info["outcome"], float(reward), answer=answer))
        over, success = terminated or truncated, bool(info["success"])
    return episode(
        *turns, success=success, ending=Ending.TERMINATED if success else Ending.TRUNCATED, index=seed
    )
