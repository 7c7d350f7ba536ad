"""`rlpost settings`: every setting, with its default, range and meaning."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest

from rlpost.command.settings import Setting, main, settings, typed
from rlpost.config.compose import compose
from rlpost.config.keys import schema
from rlpost.config.meanings import choice_meanings, comments, meanings
from rlpost.config.schema import Config, KlPlace
from rlpost.errors import ConfigError

KEYS = [key for key, kind in schema().items() if not dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_a_meaning(key: str) -> None:
    assert len(meanings()[key]) > 5


def test_the_listing_has_every_setting_once() -> None:
    assert [setting.key for setting in settings()] == KEYS


@pytest.mark.parametrize("setting", list(settings()), ids=lambda setting: setting.key)
def test_a_default_can_be_typed_as_it_is_printed(setting: Setting) -> None:
    word = f"{setting.key}={typed(setting.default)}"
    config = compose(["experiment=tiny_base", "algo=ppo", word])
    default = functools.reduce(getattr, setting.key.split("."), Config())
    given = functools.reduce(getattr, setting.key.split("."), config)
    assert given == default
    assert type(given) is type(default)


def test_a_setting_is_shown_with_default_range_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algo.kl_step"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "algo.kl_step=0.1  a number above 0 and at most 1",
        "    gain of the steering: kl_coef moves by at most a fifth of it an iteration",
    ]


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("seed", "a whole number at least 0 and at most 2147483647"),
        ("algo.kl", "one of reward, loss, none"),
        ("algo.kl_target", "a number above 0, or null"),
        ("adapter", "a word, or null"),
        ("eval.greedy", "true or false"),
        ("env_args", "a mapping: {a: 1}"),
        ("learner.betas", "a list: [a,b]"),
    ],
)
def test_what_may_be_given_is_said_in_words(key: str, allowed: str) -> None:
    assert {setting.key: setting.allowed for setting in settings()}[key] == allowed


def test_the_json_has_choices_and_the_algorithms_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algo.kl", "--json"]) == 0
    listed = {each["key"]: each for each in json.loads(capsys.readouterr().out)}
    assert set(listed) == {"algo.kl", "algo.kl_estimator", "algo.kl_coef", "algo.kl_target", "algo.kl_step"}
    assert listed["algo.kl"]["default"] == "reward"
    assert listed["algo.kl"]["choices"] == choice_meanings(KlPlace)
    assert listed["algo.kl_coef"]["defaults_by_algorithm"] == {"grpo": 0.04}


def test_a_prefix_that_nothing_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^algo\.gama\n.*\n  remedy: did you mean algo\.gamma"):
        main(["algo.gama"])


def test_comments_beside_above_and_over_lines_are_read() -> None:
    source = '''
class Group:
    """Not a comment."""

    a: int = 1  # beside
    # above,
    # in two lines
    b: str = "# no comment"
    c: int = (
        2  # inside
    )
    d: int = 3

class Choice:
    x = "x"  # of a choice
'''
    assert comments(source) == {
        "Group": {"a": "beside", "b": "above, in two lines", "c": "inside", "d": ""},
        "Choice": {"x": "of a choice"},
    }
