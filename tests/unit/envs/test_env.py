from __future__ import annotations

import json
import random
import re
import warnings
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from rlpost.envs.generalpoints.deck import Deal
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.envs.generalpoints.prompts import AnswerForm, PromptStyle, answer, prompt
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.generalpoints.variants import VARIANTS
from rlpost.envs.splits import Split, split_of

WRONG = '{"formula": "1+"}'


def table(variant: str, *ranks: str, **args: Any) -> GeneralPoints:
    """An environment with the given cards on the table."""
    env = GeneralPoints(**args)
    env.reset(seed=0, options={"variant": variant})
    env._deal = Deal(VARIANTS[variant], ranks, VARIANTS[variant].values(ranks))
    return env


@pytest.mark.parametrize("mode", ["mended", "compat"])
@pytest.mark.parametrize("style", ["short", "published"])
def test_gymnasium_checker_has_nothing_to_say(mode: str, style: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = EnvSpec(
            "GeneralPoints-v0", "rlpost.envs.generalpoints.env:GeneralPoints", disable_env_checker=True
        )
        # Made by Gymnasium: only with a spec does the checker compare the observations of equal seeds.
        check_env(gymnasium.make(spec, mode=mode, prompt=style).unwrapped)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"mode": "strict"}, "mode='strict': must be one of mended, compat"),
        ({"prompt": "long"}, "prompt='long': must be one of published, short"),
        ({"answer_form": 1}, "answer_form=1: must be one of steps, direct, published"),
        ({"feedback": None}, "feedback=None: must be one of full, leak_free"),
        ({"wording": "free"}, "wording='free': must be one of fixed, varied"),
        ({"solutions": "two"}, "solutions='two': must be one of any, one"),
        ({"verify_iter": 0}, "verify_iter=0"),
        ({"verify_iter": 2.0}, "verify_iter=2.0"),
        ({"verify_iter": True}, "verify_iter=True"),
        ({"mode": "compat", "feedback": "leak_free"}, "mode='compat' leaks"),
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        GeneralPoints(**args)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"variant": "faces_9"},
            "variant='faces_9': must be one of faces_10, faces_10_mixed, faces_11_12_13",
        ),
        ({"variant": ["faces_10"]}, "must be one of"),
        ({"split": "test"}, "split='test': must be one of train, eval, all"),
        ({"varaint": "faces_10"}, "options=['varaint']: unknown; there are variant, split"),
    ],
)
def test_bad_options_are_refused_and_leave_the_episode_as_it_was(options: dict[str, Any], told: str) -> None:
    env = GeneralPoints()
    env.reset(seed=1)
    before = env.deal
    with pytest.raises(ValueError) as caught:
        env.reset(seed=2, options=options)
    assert told in str(caught.value)
    assert env.deal is before


@pytest.mark.parametrize("variant", ["five_cards", "faces_10_mixed"])
def test_compat_refuses_other_numbers_of_cards(variant: str) -> None:
    with pytest.raises(ValueError, match=rf"{variant}.*4 cards"):
        GeneralPoints(mode="compat").reset(options={"variant": variant})


def test_reset_shows_the_cards_and_names_the_instance() -> None:
    env = GeneralPoints()
    observation, info = env.reset(seed=5, options={"variant": "faces_11_12_13", "split": "eval"})
    variant, ranks = VARIANTS["faces_11_12_13"], tuple(info["ranks"])
    assert observation == prompt(PromptStyle.SHORT, variant, ranks)
    assert info["values"] == list(variant.values(ranks))
    assert info["instance"] == "24:" + "-".join(str(value) for value in sorted(info["values"]))
    assert split_of(info["instance"]) is Split.EVAL


@pytest.mark.parametrize(
    ("values", "difficulty"),
    [
        ((3, 3, 8, 8), "solutions: 1"),
        ((1, 1, 1, 1), "solutions: none"),
        ((1, 2, 3, 4), "solutions: 13 or more"),
    ],
)
def test_difficulty_is_how_many_solutions_there_are(values: tuple[int, ...], difficulty: str) -> None:
    """3 3 8 8 has 8 / (3 - 8 / 3) alone; no four ones make 24."""
    env = GeneralPoints()
    env.reset(seed=0)
    env._deal = Deal(VARIANTS["faces_10"], tuple(map(str, values)), values)
    assert env._difficulty(Split.EVAL) == difficulty
    assert env._difficulty(Split.TRAIN) is None, "training waits for no solver"


def test_reset_says_the_difficulty_of_an_evaluation() -> None:
    _, info = GeneralPoints().reset(seed=5, options={"variant": "faces_10", "split": "eval"})
    assert info["difficulty"].startswith("solutions: ")
    _, info = GeneralPoints().reset(seed=5, options={"variant": "five_cards", "split": "eval"})
    assert info["difficulty"] is None


def test_splits_by_default_are_train_and_in_compat_all() -> None:
    mended, compat = GeneralPoints(), GeneralPoints(mode="compat")
    drawn = {env: {split_of(env.reset(seed=s)[1]["instance"]) for s in range(40)} for env in (mended, compat)}
    assert drawn[mended] == {Split.TRAIN}
    assert drawn[compat] == {Split.TRAIN, Split.EVAL}


def test_seeds_reproduce_and_mode_and_texts_do_not_change_the_deal() -> None:
    def deals(**args: Any) -> list[str]:
        env = GeneralPoints(**args)
        seeded = [env.reset(seed=seed, options={"split": "all"})[0] for seed in range(5)]
        return seeded + [env.reset(options={"split": "all"})[0] for _ in range(5)]

    assert deals() == deals() == deals(mode="compat", answer_form="direct", feedback="full")
    assert len(set(deals())) > 7


def test_global_random_state_is_left_alone() -> None:
    random.seed(0)
    state = random.getstate()
    env = GeneralPoints()
    env.reset(seed=3)
    env.step(WRONG)
    env.expert(True, random.Random(0))
    assert random.getstate() == state


def test_mended_episode_is_truncated_by_its_last_graded_attempt() -> None:
    env = table("faces_10", "4", "6", "8", "A", verify_iter=3)
    told = "You failed this trial because the formula is not valid arithmetic. Try again."
    for attempt in (1, 2):
        expected = {"outcome": "SYNTAX", "success": False, "attempt": attempt}
        assert env.step(WRONG) == (told, -3.0, False, False, expected)
    observation, reward, terminated, truncated, info = env.step(WRONG)
    assert (observation, reward) == ("the formula is not valid arithmetic.", -3.0)
    assert (terminated, truncated, info["attempt"]) == (False, True, 3)
    with pytest.raises(ResetNeeded):
        env.step(WRONG)


def test_the_last_attempt_may_still_be_right() -> None:
    env = table("faces_10", "4", "6", "8", "A", verify_iter=2)
    env.step(WRONG)
    _, reward, terminated, truncated, info = env.step('{"formula": "4*6*(8-7)"}')
    assert (reward, truncated) == (-2.0, True)
    env = table("faces_10", "4", "6", "A", "A", verify_iter=2)
    env.step(WRONG)
    _, reward, terminated, truncated, info = env.step('{"formula": "4*6*1*1"}')
    assert (reward, terminated, truncated, info["outcome"]) == (5.0, True, False, "CORRECT")
    assert info["success"]


def test_compat_punishes_an_ungraded_attempt_even_if_right() -> None:
    env = table("faces_10", "4", "6", "A", "A", mode="compat", verify_iter=2)
    for _ in range(2):
        assert env.step('{"formula": "4*6+1+1"}')[1:4] == (-1.0, False, False)
    _, reward, terminated, truncated, info = env.step('{"formula": "4*6*1*1"}')
    assert (reward, terminated, truncated, info["outcome"]) == (-1.0, False, True, "STEP_LIMIT")
    assert info["success"] is False


def test_compat_feedback_is_wrapped_as_published() -> None:
    env = table("faces_10", "3", "3", "8", "8", mode="compat")
    observation, reward, *_ = env.step('{"formula": "8/(3-8/3)"}')
    assert (observation, reward) == ("You failed this trial because . Try again.", 0.0)


def test_step_before_reset_is_refused() -> None:
    with pytest.raises(ResetNeeded):
        GeneralPoints().step(WRONG)
    with pytest.raises(ResetNeeded):
        GeneralPoints().expert(False, random.Random(0))


@pytest.mark.parametrize("mode", ["mended", "compat"])
def test_rule_misread(mode: str) -> None:
    def misread(variant: str, ranks: tuple[str, ...], formula: str) -> bool:
        step = table(variant, *ranks, mode=mode).step(json.dumps({"formula": formula}))
        return bool(step[4]["outcome"] == "RULE_MISREAD")

    cards = ("J", "K", "2", "3")
    assert misread("faces_11_12_13", cards, "10+10+2+3")  # the trained rule's numbers
    assert misread("faces_11_12_13", cards, "10*2+10/3")
    assert not misread("faces_11_12_13", cards, "11+13+2+3")  # the stated rule's
    assert not misread("faces_11_12_13", cards, "11+10+2+3")  # neither's
    assert not misread("faces_11_12_13", cards, "10+10+2")
    assert not misread("faces_10", cards, "10+10+2+3")
    assert not misread("faces_12", ("2", "2", "4", "5"), "2+2+4+5")  # no face: the rules agree


def test_leak_free_feedback() -> None:
    env = table("faces_11_12_13", "J", "K", "2", "3", feedback="leak_free")
    told = env.step('{"formula": "10+10+2+3"}')[0]
    assert told == "You failed this trial because the formula must use each card's number once. Try again."


@pytest.mark.parametrize("mode", ["mended", "compat"])
def test_strange_answers_are_outcomes_and_feedback_stays_in_the_space(mode: str) -> None:
    answers = [
        "",
        "\x00",
        "\ud800",
        "9**9**9",
        "☃" * 1000,
        '{"formula": "\\ud800"}',
        "(" * 20_000,
        "1" * 100_000,
    ]
    answers += [
        json.dumps({"formula": text}) for text in ("9**9**9", "9" * 10**5, "-" * 19_000, "1+" * 9000, "٣+1")
    ]
    env = GeneralPoints(mode=mode, verify_iter=len(answers) + 1)
    env.reset(seed=0)
    for text in answers:
        observation, reward, _, _, info = env.step(text)
        assert observation in env.observation_space
        assert reward < 0
        assert info["success"] is False


@pytest.mark.parametrize("mode", ["mended", "compat"])
@pytest.mark.parametrize("form", list(AnswerForm))
def test_every_solution_of_a_deal_earns_the_full_reward(mode: str, form: AnswerForm) -> None:
    four = [name for name, variant in VARIANTS.items() if all(r.cards == 4 for r in variant.rules())]
    names = list(VARIANTS) if mode == "mended" else four
    rng = random.Random(0)
    env = GeneralPoints(mode=mode)
    for seed in range(14):
        env.reset(seed=seed, options={"variant": names[seed % len(names)], "split": "all"})
        dealt = env.deal
        solutions = env._solutions()
        assert solutions
        for solution in rng.sample(solutions, min(15, len(solutions))):
            verdict = env.grade(answer(form, dealt.ranks, dealt.values, solution))
            assert (verdict.outcome.name, verdict.reward) == ("CORRECT", 5.0)


def test_compat_leaves_out_only_what_fails_in_floating_point() -> None:
    env = table("faces_10", "A", "4", "5", "6", mode="compat")
    assert {s.formula() for s in env._solutions()} == {"6/(5/4-1)"}
    assert {s.formula() for s in solve((1, 4, 5, 6), 24)} == {"6/(5/4-1)", "4/(1-5/6)"}
    env = table("faces_10", "3", "3", "8", "8", mode="compat")
    assert [s.formula() for s in env._solutions()] == [
        "8/(3-8/3)"
    ]  # nothing passes: the solution all the same


def _stated_rules(split: str, seeds: int, variant: str = "faces_11_12_13", **args: Any) -> list[str]:
    env, options = GeneralPoints(**args), {"variant": variant, "split": split}
    return [
        env.reset(seed=seed, options=options)[0].split("Rule: ")[1].split(". Cards: ")[0]
        for seed in range(seeds)
    ]


@pytest.mark.parametrize(("variant", "values"), [("faces_10", "10 10 10"), ("faces_11_12_13", "11 12 13")])
def test_a_reworded_variant_states_the_rule_in_words_that_training_never_has(
    variant: str, values: str
) -> None:
    fixed, reworded = (_stated_rules("eval", 100, variant=name) for name in (variant, f"{variant}_reworded"))
    assert len(set(fixed)) == 1
    assert len(set(reworded)) > 15
    assert not any("=" in rule for rule in reworded)
    for rule in reworded:
        told = dict(zip(re.findall(r"\b[JQK]\b", rule), re.findall(r"\d+", rule), strict=True))
        assert " ".join(told[face] for face in "JQK") == values


def test_varied_wording_changes_with_training_deals_alone_and_always_states_the_rule() -> None:
    fixed = "J=11, Q=12, K=13"
    for rule in (varied := _stated_rules("train", 200, wording="varied")):
        facts = [re.findall(r"[JQK]|\d+", fact) for fact in rule.split(", ")]
        assert dict(facts) == {"J": "11", "Q": "12", "K": "13"}
    assert len(set(varied)) > 25
    assert fixed in varied
    assert varied == _stated_rules("train", 200, wording="varied")
    assert set(_stated_rules("eval", 20, wording="varied")) == {fixed}
    assert set(_stated_rules("train", 20)) == {fixed}


def test_the_expert_answers_the_prompt_that_was_given() -> None:
    env = GeneralPoints(wording="varied")
    for seed in range(20):
        observation, _ = env.reset(seed=seed, options={"split": "train"})
        assert env.expert(revision=False, rng=random.Random(0))[0][0] == observation
