"""Refusals of optimizers that depend on what is installed, and on kinds."""

from __future__ import annotations

import importlib.util

import pytest

from rlpost.config.compose import compose
from rlpost.config.schema import AdapterKind, Config, Optimizer, RateSchedule, Task
from rlpost.errors import ConfigError
from rlpost.validate import optimizer


def _told(config: Config) -> str:
    return "\n".join(text for check in optimizer.OPTIMIZER_CHECKS for text in check(config))


def test_8_bit_moments_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.learner.optimizer, config.learner.gpus = Optimizer.adamw_8bit, 1.0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "needs the package bitsandbytes\n  remedy: pip install bitsandbytes" in _told(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert not _told(config)


@pytest.mark.parametrize("kind", [AdapterKind.ia3, AdapterKind.full, AdapterKind.oft])
def test_a_kind_without_a_and_b_has_neither_lora_pro_nor_lora_plus(kind: AdapterKind) -> None:
    config = Config()
    config.learner.optimizer = Optimizer.lora_pro
    assert not _told(config)
    config.lora.kind = kind
    assert f"lora.kind={kind.name} has no pair of A and B" in _told(config)
    config.learner.optimizer, config.learner.lora_plus_ratio = Optimizer.adamw, 4.0
    assert f"lora.kind={kind.name} has no B that could learn faster" in _told(config)


@pytest.mark.parametrize("optimizer_name", list(Optimizer))
@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.ia3])
@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_a_setting_is_refused_once_with_all_reasons(
    optimizer_name: Optimizer,
    kind: AdapterKind,
    stage: int,
    ratio: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = Config()
    config.learner.optimizer, config.lora.kind = optimizer_name, kind
    config.learner.zero_stage, config.learner.lora_plus_ratio = stage, ratio
    told = _told(config)
    for key in ("learner.optimizer", "learner.lora_plus_ratio"):
        assert sum(line.startswith(f"{key}=") for line in told.splitlines()) <= 1


def test_8_bit_moments_have_one_refusal_with_three_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = Config()
    config.learner.optimizer, config.learner.zero_stage = Optimizer.adamw_8bit, 2
    lines = _told(config).splitlines()
    assert lines[0] == "learner.optimizer=adamw_8bit"
    assert [line.partition(":")[0].strip() for line in lines[1:]] == ["reason"] * 3 + ["remedy"]
    for line, word in zip(lines[1:], ("gpus=0", "package", "zero_stage=2"), strict=False):
        assert word in line
    assert lines[-1] == (
        "  remedy: learner.gpus=1; and pip install bitsandbytes; and learner.zero_stage=0; or learner.optimizer=adamw"
    )


def test_muon_needs_a_matrix() -> None:
    config = Config()
    vectors = {"a.weight": (8,), "b.lora_A.weight": (1, 8), "model.embed_tokens.weight": (20, 8)}
    optimizer.check_muon(config, vectors)
    config.learner.optimizer = Optimizer.muon
    with pytest.raises(
        ConfigError, match=r"learner.optimizer=muon\n  reason: .* lora.kind=lora of rank 32 .*vectors"
    ):
        optimizer.check_muon(config, vectors)
    optimizer.check_muon(config, vectors | {"c.weight": (2, 8)})


def test_an_evaluation_has_no_optimizer() -> None:
    config = Config(task=Task.eval)
    config.learner.optimizer, config.learner.zero_stage = Optimizer.muon, 3
    assert not _told(config)


def test_schedules_that_nothing_of_the_run_follows_are_not_judged() -> None:
    """The warm start of RL with a budget has a known end; SFT has no iterations."""
    config = compose(["experiment=generalpoints_ppo", "budget.amounts=[1]", "sft.schedule=linear"])
    assert not _told(config)
    config = compose(["experiment=generalpoints_sft", "algo.schedule=linear", "algo.warmup_steps=999"])
    assert config.algo.schedule is RateSchedule.linear
    assert not _told(config)
