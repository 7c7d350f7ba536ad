from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from rlpost.envs.base import Expert, Pictured, Playable
from rlpost.envs.navigation.env import Navigation
from rlpost.envs.navigation.variants import VARIANTS
from rlpost.envs.splits import Split, split_of
from tests.unit.envs.navigation.reader import Reader
from tests.unit.envs.navigation.town import city_of

SEEDS = 1000
NO_IDEA = '{"action": "fly()"}'


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"mode": "compat", "prompt": "published"},
        {"movement": "free"},
        {"prompt": "published", "max_legs": 4},
    ],
    ids=str,
)
def test_gymnasium_checker_has_nothing_to_say(args: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = EnvSpec("Navigation-v0", "rlpost.envs.navigation.env:Navigation", disable_env_checker=True)
        check_env(gymnasium.make(spec, **args).unwrapped)


def _walk(env: Navigation, observation: str) -> tuple[float, int]:
    """Play by reading alone; the reward and the number of actions. Every action must be right."""
    reader, total, steps, over = Reader(observation), 0.0, 0, False
    while not over:
        observation, reward, terminated, truncated, info = env.step(reader.answer(observation))
        assert reward == 1.0, (info, observation)
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    assert terminated
    assert info["success"]
    return total, steps


def test_reading_the_texts_walks_every_route_of_every_variant() -> None:
    """On 1,000 seeds each, by a player that shares no code with the environment; so the expert can too."""
    env = Navigation()
    true_rules = [name for name, each in VARIANTS.items() if not each.fake_rule]
    legs: dict[str, Counter[int]] = {name: Counter() for name in true_rules}
    for seed in range(SEEDS):
        for name in true_rules:
            observation, info = env.reset(seed=seed, options={"variant": name, "split": "all"})
            total, steps = _walk(env, observation)
            assert total == steps >= info["legs"] + 1
            legs[name][info["legs"]] += 1
    assert set(legs["absolute"]) == {1, 2}
    assert set(legs["relative_long_routes"]) == {3, 4}
    assert min(legs["absolute"].values()) > SEEDS / 3


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"prompt": "published", "answer_form": "published"},
        {"answer_form": "direct", "movement": "free"},
        {"mode": "compat"},
        {"mode": "compat", "prompt": "published", "answer_form": "published", "max_legs": 3},
    ],
    ids=str,
)
def test_the_expert_is_replayed_as_shown_and_succeeds(args: dict[str, Any]) -> None:
    env, rng, wrong = Navigation(**args), random.Random(0), Counter[str]()
    for seed in range(40):
        variant = list(VARIANTS)[seed % len(VARIANTS)]
        observation, _ = env.reset(seed=seed, options={"variant": variant})
        talk = env.expert(revision=seed % 3 == 0, rng=rng)
        assert [learn for *_, learn in talk].count(False) == (seed % 3 == 0)
        for shown, answer, learn in talk:
            assert shown == observation
            observation, reward, terminated, truncated, info = env.step(answer)
            if not learn:
                wrong[info["outcome"]] += 1
            elif args.get("movement") != "free":
                assert reward == 1.0
        assert (terminated, truncated, info["success"]) == (True, False, True)
    assert wrong


def test_expert_and_hint_leave_the_episode_as_it_is() -> None:
    env = Navigation(verify_iter=1)
    env.reset(seed=2)
    env.expert(True, random.Random(0))
    talk = env.expert(False, random.Random(0))
    env.step(talk[0][1])
    assert env.expert(False, random.Random(0))[0][1] == talk[1][1]
    assert f'"{env.hint(random.Random(0))}"' in talk[1][1]


def test_mended_attempts_are_counted_at_each_place_and_the_last_truncates() -> None:
    env = Navigation(verify_iter=2)
    env.reset(seed=0)
    right = [answer for _, answer, _ in env.expert(False, random.Random(0))]
    told, reward, *over, info = env.step(NO_IDEA)
    assert (reward, over, info["outcome"], info["attempt"]) == (-1.0, [False, False], "ILLEGAL_ACTION", 1)
    assert told.startswith(
        "You failed this trial because the action must be forward(), stop() or turn_direction(x)"
    )
    _, reward, *over, info = env.step(right[0])
    assert (reward, over, info["attempt"]) == (1.0, [False, False], 2)
    assert env.step(NO_IDEA)[4]["attempt"] == 1
    told, reward, *over, info = env.step(NO_IDEA)
    assert (reward, over, info["attempt"], info["success"]) == (-1.0, [False, True], 2, False)
    assert not told.startswith("You failed")
    with pytest.raises(ResetNeeded):
        env.step(NO_IDEA)


def test_compat_punishes_a_third_attempt_even_if_right() -> None:
    env = Navigation(mode="compat")
    env.reset(seed=0)
    right = env.expert(False, random.Random(0))[0][1]
    for attempt in (1, 2):
        assert env.step(NO_IDEA)[1:4] == (-1.0, False, False), attempt
    _, reward, terminated, truncated, info = env.step(right)
    assert (reward, terminated, truncated, info["outcome"]) == (-1.0, False, True, "STEP_LIMIT")
    assert not info["success"]


def test_compat_and_the_published_prompt_rebuild_the_conversation() -> None:
    env = Navigation(mode="compat", prompt="published")
    observation, _ = env.reset(seed=4)
    assert observation.endswith('"action": the action to take,\n}\n')
    assert "O_1: No landmarks nearby; \nA_1: \n" in observation
    (_, first, _), (second, _, _), *_ = env.expert(False, random.Random(0))
    shown, *_, info = env.step(NO_IDEA)
    assert (shown.startswith("You failed this trial because"), info["rebuilt"]) == (True, False)
    shown, *_, info = env.step(first)
    assert (shown, info["rebuilt"]) == (second, True)
    assert "A_1: turn_direction(" in shown  # and nothing of the failed attempt
    assert "fly" not in shown


def test_instances_name_the_city_and_the_split_is_that_of_the_city() -> None:
    env = Navigation()
    for split in ("train", "eval"):
        for seed in range(20):
            _, info = env.reset(seed=seed, options={"variant": "relative", "split": split})
            assert split_of(city_of(info["instance"])) is Split(split)
    rules = [{"variant": "absolute"}, {"variant": "relative"}]
    names = {env.reset(seed=seed, options=rule)[1]["instance"] for seed in range(5) for rule in rules}
    assert len(names) == 5  # the rule does not change the instance


def test_splits_by_default_are_train_and_in_compat_all() -> None:
    def drawn(env: Navigation) -> set[Split]:
        return {split_of(city_of(env.reset(seed=seed)[1]["instance"])) for seed in range(40)}

    assert drawn(Navigation()) == {Split.TRAIN}
    assert drawn(Navigation(mode="compat")) == {Split.TRAIN, Split.EVAL}


def test_seeds_reproduce_and_texts_do_not_change_the_route() -> None:
    def routes(**args: Any) -> list[str]:
        env = Navigation(**args)
        return [env.reset(seed=s)[1]["instance"] for s in range(4)] + [
            env.reset()[1]["instance"] for _ in range(4)
        ]

    assert routes() == routes() == routes(prompt="published", answer_form="direct")
    assert len(set(routes())) == 8


def test_global_random_state_is_left_alone() -> None:
    random.seed(0)
    state = random.getstate()
    env = Navigation()
    env.reset(seed=3)
    env.step(NO_IDEA)
    env.expert(True, random.Random(0))
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"mode": "strict"}, "mode='strict': must be one of mended, compat"),
        ({"prompt": "long"}, "prompt='long': must be one of published, short"),
        ({"answer_form": 1}, "answer_form=1: must be one of steps, direct, published"),
        ({"verify_iter": 0}, "verify_iter=0"),
        ({"max_legs": 11}, "max_legs=11: must be a whole number of legs, at least 1 and at most 10"),
        ({"max_legs": True}, "max_legs=True"),
        ({"movement": "fly"}, "movement='fly': must be one of rail, free"),
        ({"mode": "compat", "movement": "free"}, "use movement='rail' or mode='mended'"),
        ({"data": 3}, "data=3"),
        ({"data": "nowhere"}, "data='nowhere': must be a folder"),
        ({"data": "city.osm.pbf"}, "osmium cat city.osm.pbf -o city.osm"),
    ],
)
def test_bad_arguments_are_refused(args: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        Navigation(**args)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"variant": "upside_down"}, {"variant": 1}, {"split": "test"}, {"varaint": "absolute"}]
)
def test_bad_options_are_refused_and_leave_the_episode_as_it_was(options: dict[str, Any]) -> None:
    env = Navigation()
    env.reset(seed=1)
    before = env.texts.trip
    with pytest.raises(ValueError):
        env.reset(seed=2, options=options)
    assert env.texts.trip is before


def test_step_before_reset_is_refused() -> None:
    for use in (
        lambda env: env.step(NO_IDEA),
        lambda env: env.expert(False, random.Random(0)),
        Navigation.picture,
    ):
        with pytest.raises(ResetNeeded):
            use(Navigation())


@pytest.mark.parametrize("args", [{}, {"mode": "compat"}, {"movement": "free"}], ids=str)
def test_strange_answers_are_outcomes_and_feedback_stays_in_the_space(args: dict[str, Any]) -> None:
    answers: list[str] = ["", "\x00", "\ud800", "☃" * 1000, "{" * 20_000, '{"action":' * 1500, "1" * 100_000]
    answers += [
        json.dumps({"action": each}) for each in (None, 3, [], {}, "turn_direction()", "\ud800", "x" * 9000)
    ]
    answers += [json.dumps({"action": "stop ()", "observation": {"a": 1}, "current observation": 4})]
    env = Navigation(verify_iter=len(answers) + 1, **args)
    env.reset(seed=0)
    for text in answers[:-1]:
        observation, reward, terminated, truncated, info = env.step(text)
        assert observation in env.observation_space
        assert reward < 0
        assert (terminated, truncated, info["success"]) == (False, False, False)
    assert env.step(answers[-1])[1] < 0


@pytest.mark.parametrize("mode", ["mended", "compat"])
def test_rule_misread_is_a_compass_word_under_the_relative_rule(mode: str) -> None:
    env = Navigation(mode=mode, verify_iter=9)
    env.reset(seed=0, options={"variant": "relative"})
    tried = ("turn_direction(north)", "turn_direction(southwest)", "forward()", "turn_direction(up)")
    steps = [env.step(json.dumps({"action": action})) for action in tried]
    misread = [info["outcome"] == "RULE_MISREAD" for *_, info in steps]
    assert misread == [True, True, False, False]
    assert {reward for _, reward, *_ in steps[:2]} == {-1.0}
    env.reset(seed=0, options={"variant": "absolute"})
    assert env.step('{"action": "turn_direction(left)"}')[4]["outcome"] != "RULE_MISREAD"


def test_words_of_the_short_texts_are_few() -> None:
    """Small models have small contexts: 40 words first for four instructions, 15 an observation, 20 an answer."""
    env = Navigation()
    for seed in range(60):
        for variant in ("absolute", "relative"):
            observation, info = env.reset(seed=seed, options={"variant": variant})
            assert len(observation.split()) <= (42 if info["legs"] == 2 else 36)
            for shown, answer, _ in env.expert(False, random.Random(0))[1:]:
                assert len(shown.split()) <= 9
                assert len(answer.split()) <= 22


def test_protocols() -> None:
    env = Navigation()
    assert isinstance(env, Expert)
    assert isinstance(env, Playable)
    assert isinstance(env, Pictured)
