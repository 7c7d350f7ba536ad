from __future__ import annotations

import pytest

from rlpost.envs import registry
from rlpost.envs.generalpoints.env import GeneralPoints
from rlpost.envs.generalpoints.variants import VARIANTS


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
    assert [variant.name for variant in listed if not variant.held_out] == ["faces_10", "faces_10_mixed"]


@pytest.mark.parametrize("use", [registry.make, registry.variants])
def test_unknown_names_list_what_there_is(use: object) -> None:
    assert callable(use)
    with pytest.raises(ValueError, match=r"'generalpoint': there are .*; did you mean generalpoints\?"):
        use("generalpoint")
    with pytest.raises(ValueError) as caught:
        use("chess")
    assert "generalpoints" in str(caught.value)
    assert "did you mean" not in str(caught.value)


def test_unknown_arguments_list_what_there_is() -> None:
    with pytest.raises(
        ValueError, match=r"unknown argument modus, turns; there are: mode, prompt, answer_form"
    ):
        registry.make("generalpoints", turns=3, modus="x")


def test_overlap_of_training_and_held_out_instances_is_refused() -> None:
    registry.refuse_overlap(["a", "b"], ["c"])
    with pytest.raises(ValueError, match=r"2 instances are both trained on and held out, such as a, b"):
        registry.refuse_overlap(["b", "a", "x"], ["a", "b", "y"])


@pytest.mark.parametrize("name", registry.names())
def test_no_held_out_instance_can_be_trained_on(name: str) -> None:
    """Whatever the variants: the split, which the instance's hash decides, keeps them apart."""
    env = registry.make(name)

    def instances(variant: str, split: str) -> set[str]:
        options = {"variant": variant, "split": split}
        return {env.reset(seed=seed, options=options)[1]["instance"] for seed in range(25)}

    listed = registry.variants(name)
    trained = set().union(*(instances(each.name, "train") for each in listed if not each.held_out))
    held_out = set().union(*(instances(each.name, "eval") for each in listed))
    registry.refuse_overlap(trained, held_out)


def test_variants_of_navigation() -> None:
    listed = registry.variants("navigation")
    assert [variant.name for variant in listed if not variant.held_out] == ["absolute"]
    assert {variant.name for variant in listed} > {"relative", "old_town", "long_routes"}
