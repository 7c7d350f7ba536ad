"""lora.learning_rate=auto: the bundled model's own rates, the published formula, and refusals."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlpost.config.learning_rates import advised, factor, settled
from rlpost.config.schema import AdapterKind, Config, LearningRate, LoraConfig
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
    ],
)
def test_the_width_counts_by_the_published_exponents(family: str, width: int, share: float) -> None:
    assert factor(LoraConfig(), family, width) == pytest.approx(share)


def test_only_the_scaling_times_the_rank_counts_of_the_adapter() -> None:
    def of(kind: AdapterKind, rank: int, alpha: float) -> float:
        return factor(LoraConfig(kind=kind, rank=rank, alpha=alpha), "llama", 256)

    assert of(AdapterKind.lora, 1, 64.0) == of(AdapterKind.dora, 256, 64.0) == 1.0
    assert of(AdapterKind.lora, 32, 128.0) == pytest.approx(0.5)
    assert of(AdapterKind.rslora, 16, 16.0) == pytest.approx(of(AdapterKind.lora, 16, 64.0)), (
        "the same scaling, 4"
    )
    assert of(AdapterKind.rsdora, 16, 16.0) == of(AdapterKind.rslora, 16, 16.0)


def test_full_fine_tuning_has_a_tenth_of_loras_rate_at_the_published_alpha() -> None:
    lora = factor(LoraConfig(alpha=32.0), "llama", 4096)
    assert factor(LoraConfig(kind=AdapterKind.full, alpha=7.0), "llama", 4096) == pytest.approx(lora / 10)


def test_a_kind_that_the_rule_does_not_cover_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not cover lora\.kind=ia3"):
        advised(_auto(kind=AdapterKind.ia3), "llama", 256)


def test_a_family_without_a_published_exponent_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"lora.learning_rate=auto\n  reason: model=tiny is a gemma3, .*llama"
    ):
        advised(_auto(), "gemma3", 640)


def test_given_rates_are_left_alone_and_auto_tells_what_it_chose() -> None:
    console = Console(file=io.StringIO(), width=200)
    cfg = Config()
    assert settled(cfg, "gemma3", 640, console) is cfg
    settled(_auto(rank=8), "llama", 576, console)
    assert isinstance(console.file, io.StringIO)
    assert "sft 0.00053, policy 0.00016, critic 0.00053 (llama of width 576" in console.file.getvalue()


def test_a_model_that_hides_its_width_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match="no hidden_size"):
        models.family_and_width(tmp_path)
    (tmp_path / "config.json").write_text('{"text_config": {"model_type": "llama", "hidden_size": 8}}')
    assert models.family_and_width(tmp_path) == ("llama", 8)
