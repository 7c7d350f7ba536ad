from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import pytest

import rlpost.envs.generalpoints.outcomes
import rlpost.envs.navigation.outcomes
from rlpost.compare.design.types import INIT, Evaluation
from rlpost.compare.statistics.causes import Causes, cause_of, causes, last_outcome
from rlpost.config.schema import Config, Task
from rlpost.envs import registry
from rlpost.envs.base import has_fake_rule, has_own_rule
from rlpost.envs.causes import FAULT, ORDER, RULE_MISREAD, RULE_OBEYED, SOLVED, TRUNCATION
from rlpost.envs.texts import UNEXPLAINED, AnyText
from rlpost.errors import ConfigError
from rlpost.types import Ending, Finish, Trajectory, Turn
from rlpost.validate.checks import validate
from tests.unit.compare import players
from tests.unit.compare.comparisons import comparison, done, evaluation, of_tables
from tests.unit.episodes import episode, turn

DEALS = range(40)
CARDS = registry.causes("generalpoints")
RULES = {  # variants on which the trained rule is wrong
    "generalpoints": (
        "faces_11_12_13",
        "faces_11_12_13_reworded",
        "faces_11_12_13_paraphrased",
        "faces_12",
        "faces_7",
        "faces_5",
        "target_36",
        "five_cards",
    ),
    "navigation": ("relative", "relative_old_town", "relative_long_routes"),
}
SAME_RULE = {
    "generalpoints": ("faces_10_reworded", "faces_10_paraphrased"),
    "navigation": ("old_town", "long_routes"),
}
FAKE = {
    "generalpoints": ("fake_faces_11_12_13", "fake_faces_12", "fake_faces_7", "fake_faces_5"),
    "navigation": ("fake_relative",),
}


def _evaluated(env: str, played: Sequence[Trajectory]) -> Causes:
    scored = Evaluation(
        tuple(each.instance for each in played),
        tuple(each.success for each in played),
        tuple(map(last_outcome, played)),
        tuple(len(each.turns) * each.success for each in played),
    )
    cells, declared = [done(INIT, 0, {0.0: {"v": scored}})], registry.causes(env)
    (found,) = causes(comparison(cells, [0], ["v"], env=env, causes=declared))
    return found


@pytest.mark.parametrize(
    ("env", "outcome"),
    [
        *(("generalpoints", each.name) for each in rlpost.envs.generalpoints.outcomes.Outcome),
        *(("navigation", each.name) for each in rlpost.envs.navigation.outcomes.Outcome),
    ],
)
def test_every_outcome_has_a_cause(env: str, outcome: str) -> None:
    assert outcome in registry.causes(env)
    assert cause_of(registry.causes(env), outcome) in ORDER


def test_every_environment_and_every_held_out_variant_is_tested_here() -> None:
    assert set(RULES) == set(registry.ENTRIES)
    for env, rules in RULES.items():
        held_out = [each for each in registry.variants(env) if each.held_out]
        assert {each.name for each in held_out if has_own_rule(each)} == set(rules)
        same = {*SAME_RULE[env], *FAKE[env]}
        assert {each.name for each in held_out if not has_own_rule(each)} == same
        assert {each.name for each in registry.variants(env) if has_fake_rule(each)} == set(FAKE[env])


@pytest.mark.parametrize(
    "args", [{}, {"mode": "compat"}, {"feedback": "leak_free", "prompt": "published"}], ids=str
)
@pytest.mark.parametrize("variant", RULES["generalpoints"])
def test_the_old_rule_at_cards_is_all_memorization(variant: str, args: dict[str, Any]) -> None:
    if variant == "five_cards" and "mode" in args:
        pytest.skip("the published game has four cards")
    _old_rule("generalpoints", variant, players.old_cards, args)


@pytest.mark.parametrize(
    "args", [{}, {"mode": "compat"}, {"movement": "free"}, {"prompt": "published"}], ids=str
)
@pytest.mark.parametrize("variant", RULES["navigation"])
def test_the_old_rule_at_turns_is_all_memorization(variant: str, args: dict[str, Any]) -> None:
    _old_rule("navigation", variant, players.old_turns, args)


def _old_rule(env: str, variant: str, player: players.Player, args: dict[str, Any]) -> None:
    played = players.play(env, variant, player, DEALS, verify_iter=2, **args)
    assert len(played) > len(DEALS) / 3  # the player has an answer
    found = _evaluated(env, played)
    assert found.failures == len(played)  # the trained rule is right nowhere
    assert found.memorization is not None
    assert found.memorization.value == 1
    assert found.memorization.low > 0.8
    assert found.shares == {RULE_MISREAD: 1.0}


@pytest.mark.parametrize(
    ("env", "variant", "player"),
    [
        *(("generalpoints", variant, players.reads_cards) for variant in RULES["generalpoints"]),
        *(("navigation", variant, players.reads_turns) for variant in RULES["navigation"]),
    ],
)
def test_reading_the_rule_and_failing_otherwise_is_no_memorization(
    env: str, variant: str, player: players.Player
) -> None:
    found = _evaluated(env, players.play(env, variant, player, DEALS, verify_iter=2))
    assert found.failures == len(DEALS)
    assert found.memorization is not None
    assert found.memorization.value == 0
    assert found.memorization.high < 0.2


@pytest.mark.parametrize("variant", ["absolute", *SAME_RULE["navigation"]])
def test_the_trained_rule_solves_where_it_is_the_stated_one(variant: str) -> None:
    found = _evaluated("navigation", players.play("navigation", variant, players.old_turns, DEALS))
    assert (found.failures, found.memorization, found.shares) == (0, None, {SOLVED: 1.0})


@pytest.mark.parametrize("variant", ["faces_10", *SAME_RULE["generalpoints"]])
def test_the_trained_rule_solves_the_trained_cards(variant: str) -> None:
    found = _evaluated("generalpoints", players.play("generalpoints", variant, players.old_cards, DEALS))
    assert (found.failures, found.memorization) == (0, None)


PLAYERS: dict[str, tuple[players.Player, players.Player]] = {  # of the trained rule, of the stated one
    "generalpoints": (players.old_cards, players.obeys_cards),
    "navigation": (players.old_turns, players.obeys_turns),
}


@pytest.mark.parametrize(
    ("env", "variant", "args"),
    [
        *(("generalpoints", variant, {}) for variant in FAKE["generalpoints"]),
        *(
            ("generalpoints", FAKE["generalpoints"][0], args)
            for args in ({"mode": "compat"}, {"prompt": "published"})
        ),
        *(
            ("navigation", FAKE["navigation"][0], args)
            for args in ({}, {"movement": "free"}, {"mode": "compat"})
        ),
        ("navigation", FAKE["navigation"][0], {"prompt": "published"}),
    ],
    ids=str,
)
def test_a_fake_rule_is_solved_by_heart_and_failed_by_reading(
    env: str, variant: str, args: dict[str, Any]
) -> None:
    by_heart, reader = PLAYERS[env]
    solved = players.play(env, variant, by_heart, DEALS, **args)
    assert all(each.success for each in solved)
    assert {turn.outcome for each in solved for turn in each.turns} <= {"CORRECT", "ARRIVED"}
    found = _evaluated(env, played := players.play(env, variant, reader, DEALS, **args))
    assert found.failures == len(DEALS)
    assert found.shares == {RULE_OBEYED: 1.0}
    assert found.memorization is not None
    assert found.memorization.value == 0, "whoever reads the rule is not said to have memorized"
    assert len(played[0].turns) > 1, "it may try again"


@pytest.mark.parametrize("env", FAKE)
def test_on_the_true_rule_of_the_same_prompt_the_reader_wins(env: str) -> None:
    variant = FAKE[env][0].removeprefix("fake_")
    played = players.play(env, variant, PLAYERS[env][1], DEALS)
    assert all(each.success for each in played)


@pytest.mark.parametrize("env", FAKE)
@pytest.mark.parametrize("prompt", ["short", "published"])
def test_a_fake_rule_states_the_other_one_and_explains_nothing(env: str, prompt: str) -> None:
    """The prompt states the rule as where it is true. No feedback on a failure names the rule that scores."""
    stated = {
        "generalpoints": ("J=11, Q=12, K=13", "'11', '12', and '13'"),
        "navigation": ("slightly left",) * 2,
    }
    made = registry.make(env, prompt=prompt)
    for seed in range(10):
        first, _ = made.reset(seed=seed, options={"variant": FAKE[env][0], "split": "eval"})
        assert stated[env][prompt == "published"] in first
        for answer in (PLAYERS[env][1](made.unwrapped), "nonsense"):
            observation, _, terminated, truncated, _ = made.step(str(answer))
            if not (terminated or truncated):
                assert observation == f"You failed this trial because {UNEXPLAINED} Try again."


def test_outcomes_that_are_not_the_environments() -> None:
    cut = turn("NO_FORMULA", finish=Finish.LENGTH)
    assert cause_of(CARDS, last_outcome(episode(cut))) == TRUNCATION
    assert last_outcome(episode(turn("RULE_MISREAD", finish=Finish.LENGTH))) == "RULE_MISREAD"
    assert last_outcome(episode(turn("SYNTAX"))) == "SYNTAX"
    assert cause_of({}, last_outcome(episode(ending=Ending.CONTEXT_FULL))) == TRUNCATION
    assert cause_of({}, "BAD_RHYME") == "BAD_RHYME"
    assert cause_of({}, "CRASH") == "CRASH", "of a car, in somebody's environment"
    assert cause_of({"BAD_RHYME": "verse"}, "BAD_RHYME") == "verse"


@pytest.mark.parametrize("ending", [each for each in Ending if each.broken])
@pytest.mark.parametrize("turns", [(), (turn("WRONG_ACTION"),)])
def test_an_episode_that_the_environment_ended_is_its_fault(ending: Ending, turns: tuple[Turn, ...]) -> None:
    broken = episode(*turns, ending=ending, error="ValueError")
    assert cause_of(registry.causes("navigation"), last_outcome(broken)) == FAULT


def test_the_attempt_that_nobody_grades_is_no_outcome() -> None:
    assert last_outcome(episode(turn("RULE_MISREAD"), turn("STEP_LIMIT"))) == "RULE_MISREAD"
    assert last_outcome(episode(turn("STEP_LIMIT"))) == "STEP_LIMIT"


def test_shares_by_hand() -> None:
    outcomes = ("CORRECT", "RULE_MISREAD", "RULE_MISREAD", "SYNTAX", "WRONG_VALUE")
    scored = evaluation([1, 0, 0, 0, 0], outcomes=outcomes)
    other = evaluation([1, 1, 1, 0, 0], outcomes=("CORRECT", "CORRECT", "CORRECT", "NEW", "RULE_MISREAD"))
    cells = [done("sft", seed, {1.0: {"v": each}}) for seed, each in enumerate((scored, other))]
    (found,) = causes(comparison(cells, [0, 1], ["v"]))
    expected = {SOLVED: 0.4, RULE_MISREAD: 0.3, "arithmetic": 0.1, "syntax": 0.1, "NEW": 0.1}
    assert found.shares == pytest.approx(expected)
    assert list(found.shares) == list(expected)
    assert found.failures == 6
    assert found.memorization is not None
    assert found.memorization.value == pytest.approx(0.5)
    assert 0 < found.memorization.low < 0.5 < found.memorization.high < 1


def test_every_arm_and_point_has_its_causes() -> None:
    found = causes(of_tables({INIT: {"a": [[1]], "b": [[0]]}, "sft": {"a": [[1]], "b": [[1]]}}))
    keys = [(each.arm, each.variant, each.share) for each in found]
    assert keys == [(INIT, "a", 0.0), (INIT, "b", 0.0), ("sft", "a", 1.0), ("sft", "b", 1.0)]


@pytest.mark.parametrize("declared", [{}, {"RULE_MISREAD": "did not listen"}])
def test_of_an_environment_that_cannot_tell_nothing_is_measured(declared: dict[str, str]) -> None:
    """Its outcome may have any name."""
    scored = evaluation([1, 0, 0], outcomes=("CORRECT", "RULE_MISREAD", "RULE_MISREAD"))
    cells = [done("sft", 0, {1.0: {"v": scored}})]
    (found,) = causes(comparison(cells, [0], ["v"], causes=declared))
    assert (found.failures, found.memorization) == (2, None)
    assert list(found.shares) == [SOLVED, declared.get("RULE_MISREAD", "RULE_MISREAD")]


class Declares(gymnasium.Env[str, str]):
    causes: ClassVar = {"SQUAWK": RULE_MISREAD, "SCREECH": "misspelt"}


class DeclaresNonsense(gymnasium.Env[str, str]):
    observation_space = action_space = AnyText(9)
    causes: ClassVar = ["SQUAWK"]


class DeclaresNothing(gymnasium.Env[str, str]):
    pass


def test_what_ones_own_environment_declares_is_taken_and_checked() -> None:
    here = Declares.__module__
    assert registry.causes(f"{here}:Declares") == Declares.causes
    assert registry.causes(f"{here}:DeclaresNothing") == registry.causes("dataset") == {}
    with pytest.raises(ValueError, match="no mapping of texts"):
        registry.causes(f"{here}:DeclaresNonsense")
    nonsense = Config(task=Task.compare, env=f"{here}:DeclaresNonsense")
    with pytest.raises(ConfigError, match=r"env=.*:DeclaresNonsense\n  reason: .*no mapping of texts"):
        validate(nonsense)
