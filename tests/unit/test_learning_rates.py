"""lora.learning_rate=auto: the bundled model's own rates, the published formula, and refusals."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from rlpost.config.compose import compose, to_yaml
from rlpost.config.learning_rates import advised, factor, settled
from rlpost.config.schema import AdapterKind, Config, LearningRate, LoraConfig, Optimizer
from rlpost.errors import ConfigError, ModelError
from rlpost.weights import models


def _auto(**lora: object) -> Config:
    cfg = Config()
    cfg.lora = LoraConfig(learning_rate=LearningRate.auto, **lora)  # type: ignore[arg-type]
    return cfg


def test_the_bundled_model_keeps_its_rates() -> None:
    cfg = advised(_auto(), *models.family_and_width(models.TINY))
    rates = cfg.sft.learning_rate, cfg.algo.learning_rate, cfg.algo.critic_learning_rate
    assert rates == (1e-3, 3e-4, 1e-3)
    assert cfg.lora.learning_rate is LearningRate.given, "a resumed run reads the numbers"


@pytest.mark.parametrize(
    ("family", "width", "share"),
    [
        ("llama", 256, 1.0),
        ("llama", 4096, 16**-0.781),
        ("llama", 2000, 256**0.781 / 2000**0.781),
        ("qwen3", 2000, 256**0.781 / 2000**0.781),  # the families' fits meet at this width
        ("qwen2", 4000, 2**-0.0775 * 256**0.781 / 2000**0.781),
        ("qwen3", 1000, 2**0.0775 * 256**0.781 / 2000**0.781),
    ],
)
def test_the_width_counts_by_the_published_exponents(family: str, width: int, share: float) -> None:
    assert factor(LoraConfig(), family, width) == pytest.approx(share)


@pytest.mark.parametrize(
    "name", ["generalpoints_ppo", "generalpoints_sft_vs_rl", "navigation_adapters", "generalpoints_sft"]
)
def test_the_rates_that_experiments_set_by_hand_for_the_bundled_model_are_the_rules(name: str) -> None:
    hand = compose([f"experiment={name}"])
    cfg = compose([f"experiment={name}", "lora.learning_rate=auto"])
    assert cfg.lora.learning_rate is LearningRate.auto
    assert advised(cfg, *models.family_and_width(models.TINY)) == hand


def test_lora_pro_has_the_rates_of_full_fine_tuning() -> None:
    pro, full = _auto(), _auto(kind=AdapterKind.full)
    pro.learner.optimizer = Optimizer.lora_pro
    pro, full = (advised(cfg, *models.family_and_width(models.TINY)) for cfg in (pro, full))
    assert pro.sft.learning_rate == 2e-4
    assert (pro.sft.learning_rate, pro.algo.learning_rate) == (
        full.sft.learning_rate,
        full.algo.learning_rate,
    )


@pytest.mark.parametrize(("epochs", "minibatches", "rate"), [(1, 1, 1.5e-3), (2, 1, 3e-4), (1, 4, 3e-4)])
def test_one_large_step_an_iteration_has_five_times_the_policys_rate(
    epochs: int, minibatches: int, rate: float
) -> None:
    cfg = _auto()
    cfg.algo.epochs, cfg.algo.minibatches = epochs, minibatches
    cfg = advised(cfg, "llama", 256)
    assert (cfg.sft.learning_rate, cfg.algo.learning_rate, cfg.algo.critic_learning_rate) == (
        1e-3,
        rate,
        1e-3,
    )


def test_alpha_counts_outside_the_values_that_are_in_use() -> None:
    def of(kind: AdapterKind, rank: int, alpha: float) -> float:
        return factor(LoraConfig(kind=kind, rank=rank, alpha=alpha), "llama", 256)

    assert of(AdapterKind.lora, 1, 64.0) == of(AdapterKind.dora, 256, 32.0) == 1.0
    assert of(AdapterKind.lora, 8, 45.0) == 1.0
    assert of(AdapterKind.lora, 32, 128.0) == pytest.approx(0.5)
    assert of(AdapterKind.dora, 32, 8.0) == pytest.approx(4.0)
    assert of(AdapterKind.rslora, 16, 32.0) == pytest.approx(of(AdapterKind.lora, 16, 128.0)), (
        "the same scaling, 8"
    )
    assert of(AdapterKind.rsdora, 16, 32.0) == of(AdapterKind.rslora, 16, 32.0)


@pytest.mark.parametrize(
    ("kind", "multiple"), [("full", 0.2), ("ia3", 10.0), ("randlora", 1.0), ("bitfit", 1.0)]
)
def test_other_kinds_have_their_multiple_of_the_table_whatever_alpha_is(kind: str, multiple: float) -> None:
    other = LoraConfig(kind=AdapterKind[kind], alpha=640.0)
    assert factor(other, "llama", 4096) == pytest.approx(multiple * factor(LoraConfig(), "llama", 4096))


def test_a_rate_is_at_most_1() -> None:
    assert advised(_auto(alpha=1e-3), "llama", 256).sft.learning_rate == 1.0


def test_a_resumed_run_has_the_recorded_rates_also_if_auto_is_named_again(tmp_path: Path) -> None:
    recorded = advised(compose(["experiment=generalpoints_ppo", "lora.learning_rate=auto"]), "qwen3", 1024)
    (tmp_path / "config.yaml").write_text(to_yaml(recorded))
    words = [f"resume={tmp_path}", "algo.iterations=99"]
    resumed = compose(words)
    assert resumed.algo.learning_rate == recorded.algo.learning_rate != 1.5e-3
    assert resumed.lora.learning_rate is LearningRate.given
    assert advised(compose([*words, "lora.learning_rate=auto"]), "qwen3", 1024) == resumed


def test_a_family_without_a_published_exponent_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"lora.learning_rate=auto\n  reason: model=tiny is a gemma3, .*llama"
    ) as refused:
        advised(_auto(), "gemma3", 640)
    sets = {"sft.learning_rate", "algo.learning_rate", "algo.critic_learning_rate"}
    remedy = str(refused.value).partition("remedy: ")[2]
    assert sets == set(re.findall(r"[a-z]+\.[a-z_]*learning_rate", remedy))


def test_given_rates_are_left_alone_and_auto_tells_what_it_chose() -> None:
    console = Console(file=io.StringIO(), width=200)
    cfg = Config()
    assert settled(cfg, "gemma3", 640, console) is cfg
    assert isinstance(console.file, io.StringIO)
    assert not console.file.getvalue()
    given = _auto(rank=8)
    given.algo.learning_rate = 7e-3
    settled(given, "llama", 576, console)
    told = console.file.getvalue()
    assert "auto: sft 0.00053, policy 0.00016, critic 0.00053, in place of sft 0.001, policy 0.007" in told
    assert "(llama of width 576, lora (rank 8, alpha 64)" in told


def test_a_model_that_hides_its_width_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="no hidden_size"):
        models.family_and_width(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"model_type": "llama", "hidden_size": 8}}')
    assert models.family_and_width(tmp_path) == ("llama", 8)
