"""The table of arms: complete, and each row is what its name says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlpost.config.arms import TABLE
from rlpost.config.compose import defaults_under, with_settings
from rlpost.config.keys import schema
from rlpost.config.schema import AlgoName, Config, KlPlace, Measure, RewardControl, Task
from rlpost.errors import ConfigError
from rlpost.validate.checks import validate
from tests.unit.compare.fake_run import comparison


def test_sft_and_every_algorithm_are_arms_as_they_are() -> None:
    assert TABLE["sft"].supervised
    for name in AlgoName:
        row = TABLE[name.name]
        assert (row.task, row.algorithm, row.settings) == (Task.rl, name, {})
        assert row.may_set_budget


@pytest.mark.parametrize("name", TABLE)
def test_a_row_is_complete_and_its_settings_exist(name: str) -> None:
    row = TABLE[name]
    assert row.label
    assert row.summary
    assert row.source
    assert row.settings.keys() <= schema().keys()
    with_settings(Config(), row.settings)
    if row.varies is not None:
        assert TABLE[row.varies].algorithm is row.algorithm
        assert row.supervised or name.startswith(row.varies)


def test_what_reads_no_rewards_has_no_controls() -> None:
    assert (
        not {f"{name}_{control}" for name in ("rft", "opd") for control in ("shuffled", "random")}
        & TABLE.keys()
    )


def test_labels_tell_arms_apart() -> None:
    assert len({row.label for row in TABLE.values()}) == len(TABLE)


def test_exactly_the_algorithms_with_a_penalty_can_go_without() -> None:
    with_kl = {name.name for name in AlgoName if defaults_under(name).algo.kl is not KlPlace.none}
    assert {name.removesuffix("_no_kl") for name in TABLE if name.endswith("_no_kl")} == with_kl
    assert with_kl == {"ppo", "grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"}


@pytest.mark.parametrize("control", [each for each in RewardControl if each is not RewardControl.none])
@pytest.mark.parametrize("name", [name for name in AlgoName if name not in (AlgoName.rft, AlgoName.opd)])
def test_every_algorithm_that_reads_rewards_has_its_controls(name: AlgoName, control: RewardControl) -> None:
    row = TABLE[f"{name.name}_{control.name}"]
    assert row.control
    assert not row.may_set_budget
    found = with_settings(defaults_under(name), row.settings)
    assert found.algo.reward_control is control
    found.algo.reward_control = RewardControl.none
    assert found == defaults_under(name), "nothing else differs"


def test_the_documents_ladder_names_every_arm() -> None:
    ladder = (Path(__file__).parents[2] / "docs" / "comparison.md").read_text().partition("## The arms")[2]
    named = {word.strip("`") for word in re.findall(r"`\w+`", ladder.partition("## What")[0])}
    for name, row in TABLE.items():
        ending = name.rpartition("_")[2]
        plain = row.algorithm is not None and not row.settings  # "and all other algorithms"
        assert name in named or plain or f"NAME_{ending}" in named


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        validate(comparison(Path("outputs/x"), *overrides))
    return str(error.value)


def test_an_unknown_arm_is_refused_with_the_nearest() -> None:
    assert "did you mean grpo_shuffled" in refused("arms=[sft,grpo,grpo_shufled]")
    assert "choose from sft, dft, ppo" in refused("arms=[sft,grpo,zzzzzz]")


def test_a_control_alone_has_no_budget() -> None:
    assert "a control's never is" in refused("arms=[sft,grpo_shuffled]")


def test_a_comparison_refuses_what_would_undo_an_arm() -> None:
    assert "every algorithm of the comparison would be a control" in refused("algo.reward_control=shuffled")
    found = refused(
        "arms=[sft,grpo,grpo_no_kl]", "compare.settings={a: {algo.kl: loss}, b: {algo.kl_coef: 0.5}}"
    )
    assert "compare.settings.a: algo.kl=loss" in found
    assert "grpo_no_kl has algo.kl=none by its definition" in found
    assert "compare.settings.b" not in found


def test_what_an_arm_cannot_do_is_refused_by_its_name() -> None:
    found = refused("arms=[ppo,ppo_no_kl]", "algo.kl_target=0.1")
    assert "arm ppo_no_kl: algo.kl_target=0.1" in found
    assert "arm ppo:" not in found


def test_a_reference_that_solves_nothing_cannot_be_matched() -> None:
    """The cells of the other arms end with this refusal."""
    found = Config(task=Task.sft)
    found.budget.measure, found.budget.amounts = Measure.correct_rollouts, [3.0, 3.0]
    with pytest.raises(ConfigError, match=r"budget\.amounts[\s\S]*solved nothing between two points"):
        validate(found)
