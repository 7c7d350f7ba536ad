"""`lora.kind`, `lora.settings` and start adapters of every kind: what is taken, and what is refused in which words."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlpost.config.adapter_kinds import REFUSED, TABLE, described
from rlpost.config.compose import compose, with_settings
from rlpost.config.schema import AdapterKind, Config, LoraConfig, Task
from rlpost.errors import AdapterError, ConfigError
from rlpost.validate.checks import validate
from rlpost.validate.model import check_model
from rlpost.weights.adapters import Adapter
from rlpost.weights.kind_settings import check_settings_of_kind, check_start, own_settings
from tests.adapter_kinds import ADAPTERS, LORAS_FAMILY, documented, small
from tests.learner_data import write_small_model

EXPERIMENT = "experiment=generalpoints_ppo"


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text().splitlines()
    lines = [documented(kind) for kind in AdapterKind]
    assert [line for line in page if line in lines] == lines
    reasons = [f"| `{name}` | {reason} |" for name, reason in REFUSED.items()]
    assert [line for line in page if line in reasons] == reasons


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def started(lora: LoraConfig) -> dict[str, Any]:
    """adapter_config.json of what a run with `lora` would write, as far as the kind goes."""
    settings = TABLE[lora.kind].peft_settings(lora)
    return {**own_settings(settings["peft_type"]), **settings}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_kinds_that_cannot_be_trained_are_refused_with_their_reason(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose([EXPERIMENT, f"lora.kind={name}"])
    assert str(refused.value).startswith(
        f"lora.kind={name}\n  reason: {REFUSED[name]}\n  remedy: choose one of lora,"
    )


def test_an_unknown_kind_is_refused_with_a_suggestion() -> None:
    with pytest.raises(
        ConfigError, match="there is no such kind of adapter\n  remedy: did you mean boft or oft"
    ):
        compose([EXPERIMENT, "lora.kind=bofft"])


def test_a_kind_brings_its_own_size_and_the_experiments_is_loras() -> None:
    assert compose([EXPERIMENT]).lora.rank == compose([EXPERIMENT, "lora.kind=dora"]).lora.rank == 8
    assert (
        compose([EXPERIMENT, "lora.kind=oft"]).lora.rank == TABLE[AdapterKind.oft].defaults["lora.rank"] == 32
    )
    assert compose([EXPERIMENT, "lora.kind=oft", "lora.rank=16"]).lora.rank == 16
    tiny = compose([EXPERIMENT, "lora.kind=tinylora", "lora.settings={r: 4}"]).lora
    assert (tiny.rank, tiny.settings) == (13, {"r": 4})
    assert described(tiny) == "tinylora (u 13, r 4)"


def test_the_kind_of_an_experiments_file_keeps_the_files_size(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("lora: {kind: oft, rank: 16, settings: {block_share: true}}\n")
    assert compose([f"experiment={file}"]).lora == LoraConfig(
        AdapterKind.oft, 16, settings={"block_share": True}
    )
    assert compose([f"experiment={file}", "lora.kind=lora"]).lora == LoraConfig()


@pytest.mark.parametrize("new", ["lora", "dora", "ia3", "vera", "road"])
@pytest.mark.parametrize(
    "words", [[], ["lora.rank=5"], ["lora.kind=road"], ["lora.kind=oft", "lora.settings={coft: true}"]]
)
def test_a_comparisons_kind_has_the_settings_of_a_command_line_that_names_it(
    new: str, words: list[str]
) -> None:
    """Size and settings of another kind of PEFT do not stay."""
    base = compose([EXPERIMENT, *words])
    varied = with_settings(base, {"lora.kind": new}).lora
    if TABLE[base.lora.kind].peft_type == TABLE[AdapterKind[new]].peft_type:
        assert varied == replace(base.lora, kind=AdapterKind[new])
        return
    row = TABLE[AdapterKind[new]]
    rank = row.defaults.get("lora.rank", LoraConfig().rank)
    settings = row.defaults.get("lora.settings", {})
    assert (varied.rank, varied.alpha) == (rank, row.defaults.get("lora.alpha", LoraConfig().alpha))
    assert varied.settings == settings
    assert with_settings(base, {"lora.kind": new, "lora.rank": 3}).lora == replace(varied, rank=3)


@pytest.mark.parametrize(
    ("kind", "key"),
    [("oft", "lora.alpha"), ("vera", "lora.alpha"), ("ia3", "lora.rank"), ("ia3", "lora.alpha")],
)
def test_settings_that_a_kind_does_not_have_are_refused_when_named(kind: str, key: str) -> None:
    config = compose([EXPERIMENT, f"lora.kind={kind}", f"{key}=4"])
    with pytest.raises(ConfigError, match=f"{key}=4.*\n  reason: nothing reads it: lora.kind={kind} has no"):
        validate(config, {key})
    validate(config)


def test_zero_3_is_for_kinds_whose_modules_hold_their_own_parameters() -> None:
    for kind in ADAPTERS:
        config = compose([EXPERIMENT, f"lora.kind={kind.value}", "learner.zero_stage=3"])
        if kind in LORAS_FAMILY:
            validate(config)
            continue
        with pytest.raises(ConfigError, match=f"learner.zero_stage=3\n.*lora.kind={kind.value} read it"):
            validate(config)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("oft", {"oft_block_size": 4}, "lora.rank gives it"),
        ("oft", {"r": 4}, "lora.kind=oft gives it"),
        ("oft", {"module_dropout": 0.5}, "two passes of one policy must give the same log-probs"),
        (
            "oft",
            {"blok_share": True},
            "has no such setting that a run can give\n  remedy: did you mean block_share?",
        ),
        ("vera", {"target_modules": ["q_proj"]}, "has no such setting that a run can give"),
        ("vera", {"init_weights": False}, "has no such setting that a run can give"),
        ("loha", {"alpha": 2}, "lora.alpha gives it"),
        ("lora", {"use_dora": True}, "lora.kind=lora gives it"),
        ("lora", {"init_lora_weights": "pissa"}, "choose from rank_pattern, alpha_pattern"),
        ("vera", {"save_projection": False}, "PEFT may not save all that the adapter needs"),
        ("pvera", {"save_projection": False}, "PEFT may not save all"),
        ("pvera", {"sample_at_inference": True}, "its passes may differ from its merge"),
        ("randlora", {"save_projection": False}, "PEFT may not save all"),
        ("tinylora", {"save_projection": False}, "PEFT may not save all"),
        ("unilora", {"save_indices": False}, "lora.kind=unilora gives it"),
        ("vblora", {"save_only_topk_weights": True}, "PEFT may not save all"),
        ("supertuning", {"save_precomputed_indices": False}, "PEFT may not save all"),
    ],
)
def test_settings_that_are_not_the_kinds_own_are_refused(
    kind: str, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_settings_of_kind(LoraConfig(kind=AdapterKind[kind], settings=settings))
    assert f"lora.settings.{next(iter(settings))}=" in str(refused.value)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (
            LoraConfig(AdapterKind.c3a, rank=7),
            "PEFT cannot build lora.kind=c3a \\(block_size 7\\) on this model",
        ),
        (LoraConfig(settings={"rank_pattern": {"v_prj": 2}}), "'v_prj' matches none of the 14 modules"),
        (LoraConfig(settings={"rank_pattern": {"v_proj": "many"}}), "PEFT cannot build lora.kind=lora"),
        (LoraConfig(settings={"rank_pattern": {"[": 2}}), r"rank_pattern: '\[' is no regular expression"),
        (LoraConfig(settings={"alpha_pattern": 3}), "PEFT cannot build lora.kind=lora"),
        (LoraConfig(settings={"alpha_pattern": {"v_proj": 0}}), "has the scaling 0. Give a value above 0"),
        (
            LoraConfig(AdapterKind.ia3, settings={"feedforward_modules": r".*\.dwn_proj"}),
            r"feedforward_modules: .*dwn_proj' matches none of the 14 modules",
        ),
        (
            LoraConfig(AdapterKind.ia3, settings={"feedforward_modules": ["down_proj", "dwn_proj"]}),
            r"feedforward_modules: 'dwn_proj' matches none",
        ),
        (
            LoraConfig(
                AdapterKind.ia3, settings={"feedforward_modules": ["up_proj"]}, target_modules="q_proj"
            ),
            r"feedforward_modules: 'up_proj' matches none of the 2 modules",
        ),
        (
            LoraConfig(AdapterKind.ia3, settings={"feedforward_modules": "("}),
            r"feedforward_modules: '\(' is no regular expression",
        ),
        (
            LoraConfig(settings={"rank_pattern": {"layers.1.mlp.down_proj": "many"}}),
            "PEFT cannot build lora.kind=lora",
        ),
        (LoraConfig(AdapterKind.oft, rank=7), r"PEFT would build another .*oft_block_size.*Adjusted.*to \("),
    ],
)
def test_what_peft_cannot_build_or_would_ignore_is_refused_before_anything_starts(
    lora: LoraConfig, words: str, folder: Path
) -> None:
    with pytest.raises(AdapterError, match=words):
        check_model(Config(model="small", task=Task.rl, lora=lora), folder)


@pytest.mark.parametrize(
    ("modules", "settings"),
    [
        ("all-linear", {"feedforward_modules": ["down_proj", "up_proj"]}),
        ("q_proj,down_proj", {"feedforward_modules": ["down_proj"]}),
        ("q_proj,v_proj", TABLE[AdapterKind.ia3].defaults["lora.settings"]),  # names what is not adapted
        ("all-linear", {"feedforward_modules": r".*layers\.1\.mlp\.up_proj"}),
        ("all-linear", {"feedforward_modules": []}),
    ],
)
def test_ia3s_choice_of_inputs_is_taken_if_it_matches(
    modules: str, settings: dict[str, Any], folder: Path
) -> None:
    lora = LoraConfig(AdapterKind.ia3, settings=settings, target_modules=modules)
    check_model(Config(model="small", task=Task.rl, lora=lora), folder)


@pytest.mark.parametrize("kind", [AdapterKind.ia3, AdapterKind.road, AdapterKind.glora])
def test_a_kind_that_changes_biases_is_taken(kind: AdapterKind, tmp_path: Path) -> None:
    """Engines swap them too: test_weight_update.py merges them, tests/integration/test_swap.py writes them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, attention_bias=True, **sizes))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    check_model(Config(model="small", task=Task.rl, lora=small(kind)), tmp_path)


def test_patterns_of_lora_are_taken_and_an_adapter_without_them_is_no_start(folder: Path) -> None:
    patterns = LoraConfig(rank=4, alpha=8.0, settings={"rank_pattern": {"v_proj": 2}, "alpha_pattern": {}})
    check_model(Config(model="small", task=Task.rl, lora=patterns), folder)
    check_start(started(patterns), patterns)
    with pytest.raises(AdapterError, match=r"""lora.settings='\{"rank_pattern": \{"v_proj": 2\}\}'$"""):
        check_start(started(patterns), replace(patterns, settings={}))
    with pytest.raises(
        AdapterError, match=r"rank_pattern=\{\}; .* lora.kind=lora lora.rank=4 lora.alpha=8.0$"
    ):
        check_start(started(replace(patterns, settings={})), patterns)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_remedy_for_a_start_of_another_kind_can_be_followed(kind: AdapterKind) -> None:
    lora = small(kind)
    adapter = json.loads(json.dumps(started(lora)))
    check_start(adapter, lora)
    other = small(AdapterKind.lora if kind is not AdapterKind.lora else AdapterKind.vera)
    with pytest.raises(AdapterError, match="Give those it was trained with: ") as refused:
        check_start(adapter, other)
    words = shlex.split(str(refused.value).partition("Give those it was trained with: ")[2])
    taken = compose([EXPERIMENT, *words]).lora
    assert taken.kind is kind
    check_start(adapter, taken)


def test_a_start_of_another_size_is_refused() -> None:
    eight, four = (LoraConfig(AdapterKind.oft, rank=rank) for rank in (8, 4))
    with pytest.raises(
        AdapterError, match=r"has oft_block_size=8; the settings lora\.\* say oft_block_size=4"
    ):
        check_start(started(eight), four)


def test_a_start_with_a_setting_that_no_run_gives_has_no_remedy_in_words() -> None:
    vera = small(AdapterKind.vera)
    with pytest.raises(
        AdapterError,
        match=r"save_projection=False; .*A run does not train it: it has settings that no lora.kind",
    ):
        check_start(started(vera) | {"save_projection": False}, vera)


def test_an_adapter_of_a_kind_that_no_run_trains_is_no_start() -> None:
    with pytest.raises(AdapterError, match=r"A run does not train it: it drops ranks .* task=eval"):
        check_start({"peft_type": "ADALORA", "r": 8}, LoraConfig())


def test_the_tensors_of_a_kind_are_saved_and_read(folder: Path, tmp_path: Path) -> None:
    """Indices stay whole numbers: as float32 they would lose their low bits."""
    from rlpost.config.schema import Dtype
    from rlpost.learner.model import actor_critic

    model = actor_critic.build(folder, Dtype.float32, small(AdapterKind.supertuning), 0, ("policy",), None)
    adapter = Adapter.create(model.weights.config, model.weights.tensors("policy"), 1)
    adapter.save(tmp_path / "adapter")
    kinds = {t.dtype.is_floating_point for t in Adapter.load(tmp_path / "adapter").tensors.values()}
    assert kinds == {True, False}
