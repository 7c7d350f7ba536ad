from __future__ import annotations

import json
import random

import pytest

from rlpost.envs.base import Expert, Playable
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.envs.generalpoints.expert import random_combination
from rlpost.envs.generalpoints.prompts import AnswerForm, answer, retry
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.generalpoints.variants import VARIANTS

MODES = [("mended", "full"), ("mended", "leak_free"), ("compat", "full")]


@pytest.mark.parametrize(("mode", "feedback"), MODES)
@pytest.mark.parametrize("form", ["steps", "direct", "published"])
def test_the_last_answer_is_right_and_replayed_as_shown(mode: str, feedback: str, form: str) -> None:
    """The conversation of a revision is what the environment says when its answers are given to it."""
    env, rng = GeneralPoints(mode=mode, feedback=feedback, answer_form=form), random.Random(0)
    outcomes = set()
    for seed in range(24):
        variant = ["faces_10", "faces_11_12_13"][seed % 2]
        observation, _ = env.reset(seed=seed, options={"variant": variant})
        talk = env.expert(revision=seed % 4 != 0, rng=rng)
        assert [learn for _, _, learn in talk] == ([False, True] if seed % 4 else [True])
        for shown, text, learn in talk:
            assert shown == observation
            observation, reward, terminated, _, info = env.step(text)
            assert terminated is learn
            assert reward == 5.0 if learn else reward < 0
            outcomes.add(info["outcome"])
    assert {"CORRECT", "WRONG_NUMBERS"} < outcomes


def test_expert_answers_are_simple_where_a_simple_solution_exists() -> None:
    env, rng = GeneralPoints(answer_form="direct"), random.Random(1)
    for seed in range(30):
        env.reset(seed=seed)
        dealt = env.deal
        simple = [s for s in solve(dealt.values, 24) if s.is_simple()]
        allowed = simple or solve(dealt.values, 24)
        text = env.expert(False, rng)[-1][1]
        assert text in {answer(AnswerForm.DIRECT, dealt.ranks, dealt.values, s) for s in allowed}


def test_expert_choice_follows_the_given_random_source_only() -> None:
    env = GeneralPoints()
    env.reset(seed=4)
    first = [env.expert(True, random.Random(seed)) for seed in range(12)]
    assert first == [env.expert(True, random.Random(seed)) for seed in range(12)]
    assert len({talk[0][1] for talk in first}) > 6


def test_expert_leaves_the_episode_as_it_is() -> None:
    env = GeneralPoints(verify_iter=1)
    env.reset(seed=0)
    env.expert(True, random.Random(0))
    *_, truncated, info = env.step("no idea")
    assert (truncated, info["attempt"]) == (True, 1)


def test_wrong_attempts_mostly_use_the_right_numbers() -> None:
    env, rng = GeneralPoints(), random.Random(2)
    env.reset(seed=9)
    wrong = [env.grade(env.expert(True, rng)[0][1]).outcome.name for _ in range(200)]
    assert 110 < wrong.count("WRONG_VALUE") < 170
    assert wrong.count("WRONG_VALUE") + wrong.count("WRONG_NUMBERS") == 200


def test_random_combinations_are_simple_and_use_every_number() -> None:
    rng = random.Random(3)
    for _ in range(300):
        values = tuple(rng.randint(1, 13) for _ in range(4))
        combination = random_combination(values, rng)
        assert combination.is_simple()
        assert sorted(combination.leaves()) == sorted(values)


def test_five_cards_and_other_targets_have_experts() -> None:
    env = GeneralPoints()
    for name in VARIANTS:
        env.reset(seed=1, options={"variant": name, "split": "eval"})
        talk = env.expert(True, random.Random(0))
        assert env.grade(talk[-1][1]).reward == 5.0
        assert talk[1][0] == retry(env.grade(talk[0][1]).feedback)


def test_protocols() -> None:
    env = GeneralPoints()
    assert isinstance(env, Expert)
    assert isinstance(env, Playable)


def _formulas(which: str, seed: int) -> set[str]:
    """What the expert of one deal shows to forty dice."""
    env = GeneralPoints(solutions=which)
    env.reset(seed=seed)
    answers = [env.expert(revision=False, rng=random.Random(dice))[-1][1] for dice in range(40)]
    return {json.loads(answer)["formula"] for answer in answers}


def test_one_solution_of_a_deal_is_always_the_same_and_the_shortest() -> None:
    several = 0
    for seed in range(8):
        (one,), every = _formulas("one", seed), _formulas("any", seed)
        assert all((len(one), one) <= (len(formula), formula) for formula in every)
        several += len(every) > 1
    assert several > 4
