"""Which cells there are, in which order, with which settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlpost.compare.design.plan import (
    AT_MOST,
    CellPlan,
    arms,
    named_contrasts,
    plan,
    quickened,
    reference_arm,
    settings_of,
    start_of,
    starts,
    with_algorithm,
)
from rlpost.config import arms as arms_module
from rlpost.config.arms import Arm
from rlpost.config.compose import compose, defaults_under, to_yaml
from rlpost.config.schema import AlgoName, Config, KlPlace, Measure, RewardControl, Rewards, Task
from tests.unit.compare.fake_run import comparison

FOLDER = Path("outputs/x")
ARMS = ("arms=[sft,ppo,grpo]", "seeds=[3,5]")


@pytest.fixture
def cfg() -> Config:
    return comparison(FOLDER, *ARMS)


def settings(cfg: Config, name: str, amounts: tuple[float, ...] = (1.0, 2.0)) -> Config:
    (cell,) = [cell for cell in plan(cfg) if cell.name == name]
    return settings_of(cfg, cell, FOLDER, amounts)


def test_every_arm_and_seed_is_a_cell_after_those_that_it_needs(cfg: Config) -> None:
    cells = plan(cfg)
    assert [cell.name for cell in cells] == [
        *("init-3", "ppo-3", "sft-3", "grpo-3"),
        *("init-5", "ppo-5", "sft-5", "grpo-5"),
    ]
    assert cells[0] == CellPlan("init", 3, ())
    assert cells[1].needs == ("init-3",)
    assert cells[2].needs == cells[3].needs == ("init-3", "ppo-3")
    done: set[str] = set()
    for cell in cells:
        assert done >= set(cell.needs)
        done.add(cell.name)


def test_the_first_algorithm_sets_the_budget(cfg: Config) -> None:
    assert reference_arm(cfg) == "ppo"
    cfg.compare.arms = ["sft", "grpo", "ppo"]
    assert reference_arm(cfg) == "grpo"


def test_the_warm_start_is_a_supervised_run_of_its_own(cfg: Config) -> None:
    first, second = settings(cfg, "init-3"), settings(cfg, "init-5")
    assert first.task is second.task is Task.sft
    assert (first.seed, second.seed, first.sft.steps, first.adapter) == (3, 5, 2, None)
    assert first.output_dir == "outputs/x/cells/init-3"
    assert first.eval.start, "the bare model is scored"
    assert not second.eval.start, "but only once: it is the same for all seeds"
    assert not first.budget.amounts


def test_without_a_warm_start_init_is_an_evaluation(cfg: Config) -> None:
    cfg.sft.steps = 0
    assert settings(cfg, "init-3").task is Task.eval
    assert settings(cfg, "ppo-3").adapter is None
    cfg.adapter = "given"
    assert settings(cfg, "sft-3").adapter == "given"


def test_all_arms_start_from_the_warm_adapter_of_their_seed(cfg: Config) -> None:
    for name in ("sft-5", "ppo-5", "grpo-5"):
        found = settings(cfg, name)
        assert found.adapter == "outputs/x/cells/init-5/adapter"
        assert found.seed == 5
        assert not found.eval.start
        assert found.resume is None


def test_the_reference_goes_by_iterations_the_others_by_what_it_spent(cfg: Config) -> None:
    reference, other, sft = (settings(cfg, f"{arm}-3", (7.0, 9.0)) for arm in ("ppo", "grpo", "sft"))
    assert (reference.algo.iterations, reference.eval.every) == (8, 4)
    assert not reference.budget.amounts
    assert other.budget.amounts == sft.budget.amounts == [7.0, 9.0]
    assert other.budget.measure is Measure.flops
    assert (other.eval.every, sft.eval.every) == (0, 0)
    assert other.algo.iterations == 8 * AT_MOST
    assert (reference.sft.steps, other.sft.steps) == (0, 0)


def test_the_supervised_arm_goes_on_with_examples_that_the_warm_start_has_not_seen(cfg: Config) -> None:
    assert settings(cfg, "init-3").sft.skip == 0
    assert settings(cfg, "sft-3").sft.skip == 2


def test_an_arm_has_its_algorithms_defaults_but_what_was_set_stays() -> None:
    cfg = compose(["experiment=generalpoints_sft_vs_rl", "algo.kl_coef=0.5"])
    found = with_algorithm(cfg, AlgoName.grpo)
    assert (found.algo.name, found.rollout.group_size) == (AlgoName.grpo, 8)
    assert (found.algo.kl, found.algo.rewards) == (KlPlace.loss, Rewards.outcome)
    assert found.algo.kl_coef == 0.5
    assert found.algo.learning_rate == 1.5e-3, "of the experiment's file"
    assert with_algorithm(found, AlgoName.ppo) == cfg


NAMED = ("algo.kl=reward", "algo.kl_coef=0.02", "algo.whiten_advantages=true")  # PPO's defaults


def test_what_was_named_stays_though_it_is_the_default_of_the_reference(cfg: Config) -> None:
    plain, named = (settings(c, "grpo-3").algo for c in (cfg, comparison(FOLDER, *ARMS, *NAMED)))
    assert (plain.kl, plain.kl_coef, plain.whiten_advantages) == (KlPlace.loss, 0.01, False)
    assert (named.kl, named.kl_coef, named.whiten_advantages) == (KlPlace.reward, 0.02, True)
    assert named.kl_estimator is plain.kl_estimator, "which nobody named"
    assert settings(comparison(FOLDER, *ARMS, *NAMED), "ppo-3").algo.kl is KlPlace.reward


def test_what_an_experiments_file_names_stays_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("defaults: [generalpoints_sft_vs_rl]\nalgo: {kl: reward}\nrollout: {group_size: 1}\n")
    found = with_algorithm(compose([f"experiment={file}"]), AlgoName.grpo)
    assert (found.algo.kl, found.rollout.group_size) == (KlPlace.reward, 1)


def test_a_resumed_comparison_knows_what_was_named(tmp_path: Path) -> None:
    """Its config.yaml has every setting; the arms must not keep them all."""
    cfg = comparison(FOLDER, *ARMS, *NAMED)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    again = compose([f"resume={tmp_path}"])
    again.resume = None
    assert again == cfg
    assert settings(again, "grpo-3") == settings(cfg, "grpo-3")
    more = compose([f"resume={tmp_path}", "algo.critic_warmup=2"])
    assert more.compare.named == sorted([*cfg.compare.named, "algo.critic_warmup"])


@pytest.mark.parametrize("name", list(AlgoName))
def test_from_plain_defaults_an_arm_is_what_the_command_line_would_give(name: AlgoName) -> None:
    assert with_algorithm(defaults_under(AlgoName.ppo), name) == defaults_under(name)


def test_quick_takes_one_seed_and_fewer_iterations(cfg: Config) -> None:
    assert quickened(cfg) == cfg
    cfg.compare.quick, cfg.algo.iterations = True, 24
    quick = quickened(cfg)
    assert (quick.compare.seeds, quick.algo.iterations) == ([3], 16)
    assert cfg.compare.seeds == [3, 5], "the settings themselves stay as they are"
    cfg.algo.iterations = 8
    assert quickened(cfg).algo.iterations == 8, "never longer than the whole comparison"


RANKS = (
    "compare.settings={rank_1: {lora.rank: 1, lora.alpha: 2}, rank_8: {lora.rank: 8, sft.learning_rate: 0.5}}"
)


@pytest.fixture
def ranks() -> Config:
    return comparison(FOLDER, "arms=[sft,ppo]", "seeds=[3]", "sft.steps=0", RANKS)


def test_every_arm_is_run_with_each_of_the_named_settings(ranks: Config) -> None:
    assert arms(ranks) == ("sft.rank_1", "ppo.rank_1", "sft.rank_8", "ppo.rank_8")
    assert reference_arm(ranks) == "ppo.rank_1"
    assert [cell.name for cell in plan(ranks)] == [
        "init-3",
        *("ppo.rank_1-3", "sft.rank_1-3", "sft.rank_8-3", "ppo.rank_8-3"),
    ]


def test_named_settings_replace_those_of_the_comparison(ranks: Config) -> None:
    one, eight, init = (settings(ranks, name) for name in ("ppo.rank_1-3", "sft.rank_8-3", "init-3"))
    assert (one.task, one.lora.rank, one.lora.alpha) == (Task.rl, 1, 2.0)
    assert (eight.task, eight.lora.rank, eight.lora.alpha) == (Task.sft, 8, init.lora.alpha)
    assert (eight.sft.learning_rate, one.sft.learning_rate) == (0.5, init.sft.learning_rate)
    assert eight.budget.amounts == [1.0, 2.0], "the budget of the reference under the first settings"
    assert not one.budget.amounts
    assert one.compare.settings == {}
    assert ranks.lora.rank not in (1, 8), "the comparison's own configuration stays as it was"


LENGTHS = "compare.settings={bare: {sft.steps: 0}, long: {sft.steps: 7, sft.learning_rate: 0.5}, own: {lora.rank: 3}}"


@pytest.fixture
def lengths() -> Config:
    return comparison(FOLDER, "arms=[sft,ppo]", "seeds=[3,5]", LENGTHS)


def test_settings_with_a_warm_start_of_their_own_have_one_each(lengths: Config) -> None:
    assert starts(lengths) == ("init.bare", "init.long", "init.own")
    assert [start_of(lengths, arm) for arm in ("sft.long", "ppo.own")] == ["init.long", "init.own"]
    assert [cell.name for cell in plan(lengths)][:6] == [
        *("init.bare-3", "init.long-3", "init.own-3"),
        *("ppo.bare-3", "sft.bare-3", "sft.long-3"),
    ]
    needs = {cell.name: cell.needs for cell in plan(lengths)}
    assert needs["init.long-5"] == ()
    assert needs["ppo.bare-5"] == ("init.bare-5",), "the reference"
    assert needs["ppo.long-5"] == ("init.long-5", "ppo.bare-5")


def test_a_start_is_trained_under_its_settings_and_its_arms_go_on_from_there(lengths: Config) -> None:
    bare, long, own = (settings(lengths, f"init.{name}-5") for name in ("bare", "long", "own"))
    assert (bare.task, long.task, own.task) == (Task.eval, Task.sft, Task.sft)
    assert (long.sft.steps, long.sft.learning_rate) == (7, 0.5)
    assert (own.sft.steps, own.lora.rank) == (2, 3), "the comparison's own length"
    assert settings(lengths, "ppo.bare-5").adapter is None
    rl, sft = settings(lengths, "ppo.long-5"), settings(lengths, "sft.long-5")
    assert rl.adapter == sft.adapter == "outputs/x/cells/init.long-5/adapter"
    assert (rl.sft.steps, sft.sft.skip) == (0, 7)
    assert settings(lengths, "sft.bare-5").sft.skip == 0


def test_the_bare_model_is_scored_once_whatever_the_starts(lengths: Config) -> None:
    scored = [cell.name for cell in plan(lengths) if settings(lengths, cell.name).eval.start]
    assert scored == ["init.bare-3"]


def test_settings_without_lengths_share_one_start(ranks: Config) -> None:
    assert starts(ranks) == ("init",)
    assert start_of(ranks, "sft.rank_8") == "init"


def test_named_contrasts_hold_under_each_of_the_settings(ranks: Config, cfg: Config) -> None:
    cfg.compare.contrasts = ["grpo - ppo", " grpo-sft ", "grpo - ppo"]
    assert named_contrasts(cfg) == (("grpo", "ppo"), ("grpo", "sft"))
    ranks.compare.contrasts = ["ppo - sft", "ppo.rank_1 - sft.rank_8"]
    assert named_contrasts(ranks) == (
        ("ppo.rank_1", "sft.rank_1"),
        ("ppo.rank_8", "sft.rank_8"),
        ("ppo.rank_1", "sft.rank_8"),
    )
    cfg.compare.contrasts = ["grpo over ppo"]
    with pytest.raises(ValueError, match="grpo over ppo"):
        named_contrasts(cfg)


def test_another_kind_of_adapter_brings_its_own_size() -> None:
    kinds = "compare.settings={thirteen: {lora.kind: tinylora}, seven: {lora.kind: tinylora, lora.rank: 7}}"
    cfg = comparison(FOLDER, "arms=[sft,ppo]", "seeds=[3]", "sft.steps=0", "lora.rank=8", kinds)
    assert settings(cfg, "ppo.thirteen-3").lora.rank == 13
    assert settings(cfg, "sft.seven-3").lora.rank == 7


def test_expert_answers_in_rl_follow_those_of_the_warm_start(cfg: Config) -> None:
    """An arm's own run has no warm start, and skips what the shared one has seen, as SFT does."""
    assert settings(cfg, "grpo-3").sft.skip == 0
    cfg.algo.expert_coef = 0.5
    found = settings(cfg, "grpo-3")
    assert (found.sft.steps, found.sft.skip) == (0, cfg.sft.steps)
    assert found.sft.skip == settings(cfg, "sft-3").sft.skip > 0


def controls(*names: str) -> Config:
    return comparison(FOLDER, f"arms=[{','.join(names)}]", "seeds=[3]")


def test_an_arm_is_its_algorithm_with_the_settings_that_define_it() -> None:
    cfg = controls("sft", "ppo", "grpo", "grpo_shuffled", "ppo_random", "grpo_no_kl")
    grpo, shuffled, no_kl = (settings(cfg, f"{arm}-3") for arm in ("grpo", "grpo_shuffled", "grpo_no_kl"))
    assert shuffled.algo.reward_control is RewardControl.shuffled
    assert replace(shuffled.algo, reward_control=RewardControl.none) == grpo.algo
    assert (no_kl.algo.kl, grpo.algo.kl) == (KlPlace.none, KlPlace.loss)
    assert replace(no_kl.algo, kl=KlPlace.loss) == grpo.algo
    assert settings(cfg, "ppo_random-3").algo.reward_control is RewardControl.random
    assert settings(cfg, "ppo-3").algo.reward_control is RewardControl.none
    assert shuffled.rollout.group_size == 8
    assert (shuffled.task, shuffled.budget.amounts) == (Task.rl, [1.0, 2.0])


def test_a_name_keeps_its_meaning_whatever_the_user_named() -> None:
    """Named settings stay the same in every arm, except those that define the arm."""
    cfg = comparison(
        FOLDER, "arms=[sft,grpo,grpo_no_kl]", "seeds=[3]", "algo.kl=reward", "algo.kl_estimator=k1"
    )
    assert settings(cfg, "grpo-3").algo.kl is KlPlace.reward
    assert settings(cfg, "grpo_no_kl-3").algo.kl is KlPlace.none


def test_controls_and_supervised_arms_never_set_the_budget() -> None:
    assert reference_arm(controls("sft", "grpo_shuffled", "ppo_random", "rloo", "ppo")) == "rloo"
    assert reference_arm(controls("sft", "grpo_no_kl", "grpo")) == "grpo_no_kl"
    cfg = controls("sft", "grpo_shuffled", "ppo")
    assert [cell.name for cell in plan(cfg)] == ["init-3", "ppo-3", "sft-3", "grpo_shuffled-3"]


@pytest.fixture
def borrowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An arm that has the algorithm of the arm that sets the budget."""
    row = Arm("mixed", "a test", "none", Task.rl, None, {"algo.entropy_coef": 0.5})
    monkeypatch.setitem(arms_module.TABLE, "mixed", row)


@pytest.mark.usefixtures("borrowing")
@pytest.mark.parametrize(
    ("names", "reference", "algorithm"),
    [
        (("sft", "mixed", "grpo"), "grpo", AlgoName.grpo),
        (("sft", "mixed"), "mixed", AlgoName.ppo),
        (("mixed", "grpo_random", "rloo", "ppo"), "rloo", AlgoName.rloo),
    ],
)
def test_an_arm_may_borrow_its_algorithm(names: tuple[str, ...], reference: str, algorithm: AlgoName) -> None:
    cfg = controls(*names)
    found = settings(cfg, "mixed-3")
    assert (reference_arm(cfg), found.algo.name) == (reference, algorithm)
    assert found.algo.entropy_coef == 0.5
    assert found.rollout.group_size == defaults_under(algorithm).rollout.group_size


@pytest.mark.parametrize("measure", list(Measure))
def test_every_measure_is_the_unit_of_the_budget(measure: Measure) -> None:
    cfg = comparison(FOLDER, *ARMS, f"compare.match_on={measure.name}")
    assert settings(cfg, "sft-3").budget.measure is measure
