"""Starts of an adapter that a run cannot have are refused before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlpost import run
from rlpost.config.adapter_starts import STARTS
from rlpost.config.schema import AdapterKind, AdapterStart, BaseKind, Config, LoraConfig, Task
from rlpost.errors import ConfigError
from rlpost.validate.adapter_start import adapter_start
from rlpost.validate.model import check_model
from tests.learner_data import write_small_model

PPO = "experiment=generalpoints_ppo"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["lora.start=loftq"], "lora.start=loftq\n  reason: it makes up for what rounding the base lost"),
        (["lora.start=loftq", "lora.base=nf4", "lora.kind=dora"], "scale it to the rounded one's norms"),
        (["lora.start=pissa", "lora.kind=dora"], "lora.start=pissa\n  reason: it changes the base"),
        (["lora.start=corda", "lora.kind=rsdora"], "lora.kind=rsdora divides by the norm"),
        (["lora.start=eva", "task=compare"], "the arms of a comparison start from one adapter"),
        (["lora.start=orthogonal", "lora.rank=7"], "lora.rank=7 is odd"),
        (
            ["lora.start=pissa", "lora.settings={rank_pattern: {v_proj: 2}, alpha_pattern: {v_proj: 4}}"],
            "lora.start=pissa\n  reason: lora.settings has rank_pattern and alpha_pattern, and this start takes one",
        ),
        (["lora.start_examples=8"], "lora.start_examples=8\n  reason: nothing reads it"),
        (["lora.start=eva", "lora.start_examples=0"], "lora.start_examples=0"),
        (["lora.start=mica"], "one of default, gaussian, orthogonal, eva"),
    ],
)
def test_it_is_refused_with_the_reason(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run.prepare([PPO, *overrides])
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["lora.start=pissa"],
        ["lora.start=pissa", "lora.kind=rslora"],
        ["lora.start=eva", "lora.kind=dora", "lora.start_examples=8"],
        ["lora.start=lora_ga", "task=sft"],
        ["lora.start=orthogonal"],
        ["lora.start=loftq", "lora.base=nf4"],
        ["lora.start=pissa", "lora.base=nf4"],
        ["lora.start=gaussian", "lora.settings={rank_pattern: {v_proj: 2}}"],
    ],
)
def test_others_are_taken(overrides: list[str]) -> None:
    run.prepare([PPO, *overrides])


def test_an_adapter_is_a_start_already() -> None:
    config = Config(adapter="folder", lora=LoraConfig(start=AdapterStart.gaussian))
    assert "adapter=folder has the first values" in "".join(adapter_start(config))


def test_a_start_is_refused_once_with_all_reasons() -> None:
    lora = LoraConfig(rank=7, start=AdapterStart.loftq, kind=AdapterKind.ia3, settings={"rank_pattern": {}})
    refusals = list(adapter_start(Config(adapter="folder", task=Task.compare, lora=lora)))
    assert len(refusals) == 1
    lines = refusals[0].splitlines()
    assert lines[0] == "lora.start=loftq"
    assert [line.partition(":")[0].strip() for line in lines[1:]] == ["reason"] * 5 + ["remedy"]
    assert not list(adapter_start(Config()))


def test_gradients_need_an_expert(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "p{i}", "answer": "{i}"}}\n' for i in range(40))
    )
    words = [
        *(
            "experiment=own_ppo",
            "env=dataset",
            f"env_args.path={tmp_path / 'rows.jsonl'}",
            "env_args.score=exact",
        ),
        "sft.steps=0",
    ]
    run.prepare([*words, "lora.start=eva"])
    with pytest.raises(
        ConfigError, match="the gradient of a loss, and the environment dataset has no expert"
    ):
        run.prepare([*words, "lora.start=lora_ga"])


@pytest.mark.parametrize(
    ("start", "most"), [(AdapterStart.pissa, 16), (AdapterStart.lora_ga, 8), (AdapterStart.gaussian, 64)]
)
def test_a_rank_beyond_the_smallest_weight_is_refused(start: AdapterStart, most: int, tmp_path: Path) -> None:
    """The small model's k_proj is 16 x 32."""
    folder = write_small_model(tmp_path)
    check_model(Config(task=Task.sft, model="small", lora=LoraConfig(rank=most, start=start)), folder)
    if STARTS[start].directions:
        with pytest.raises(
            ConfigError, match=rf"lora.rank={most + 1}\n.*k_proj of model=small is \(16, 32\)"
        ):
            check_model(
                Config(task=Task.sft, model="small", lora=LoraConfig(rank=most + 1, start=start)), folder
            )


@pytest.mark.parametrize("base", BaseKind)
def test_every_start_has_a_row_and_every_kind_is_decided(base: BaseKind) -> None:
    assert set(STARTS) == set(AdapterStart)
    loftq = AdapterStart.loftq
    changing = [s for s in AdapterStart if STARTS[s].changes_base]
    others = [s for s in AdapterStart if s is not AdapterStart.default]
    for kind in AdapterKind:
        refused = [
            s for s in AdapterStart if list(adapter_start(Config(lora=LoraConfig(kind, start=s, base=base))))
        ]
        if kind in (AdapterKind.lora, AdapterKind.rslora):
            assert refused == ([loftq] if base is BaseKind.stored else [])
        else:
            assert refused == (
                [*changing, loftq] if kind in (AdapterKind.dora, AdapterKind.rsdora) else others
            )
