from __future__ import annotations

import pytest

from envs import registry
from envs.generalpoints.env import GeneralPoints
from envs.generalpoints.variants import VARIANTS


def test_every_entry_makes_an_environment_whose_variants_can_be_dealt() -> None:
    assert registry.names() == sorted(registry.ENTRIES)
    for name in registry.names():
        env = registry.make(name)
        for variant in registry.variants(name):
            observation, info = env.reset(seed=0, options={"variant": variant.name, "split": "eval"})
            assert observation
            assert info["instance"]
            assert variant.summary


def test_arguments_reach_the_environment() -> None:
    env = registry.make("generalpoints", mode="compat", verify_iter=2)
    assert isinstance(env, GeneralPoints)
    assert (env.settings.mode.value, env.settings.verify_iter) == ("compat", 2)


def test_variants_are_the_declared_ones_and_one_is_for_training() -> None:
    listed = registry.variants("generalpoints")
    assert [variant.name for variant in listed] == list(VARIANTS)
    assert [variant.name for variant in listed if not variant.held_out] == ["faces_10"]


@pytest.mark.parametrize("use", [registry.make, registry.variants])
def test_unknown_names_list_what_there_is(use: object) -> None:
    assert callable(use)
    with pytest.raises(ValueError, match=r"'generalpoint'; there are: .*Did you mean generalpoints\?"):
        use("generalpoint")
    with pytest.raises(ValueError) as caught:
        use("chess")
    assert "generalpoints" in str(caught.value)
    assert "Did you mean" not in str(caught.value)


def test_unknown_arguments_list_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"unknown argument modus, turns; there are: mode, prompt, answer_form"
    ):
        registry.make("generalpoints", turns=3, modus="x")
