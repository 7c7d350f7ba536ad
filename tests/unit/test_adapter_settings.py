"""The allow list of adapter settings, with PEFT itself as the witness of what each of them does to the weights."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from torch import nn

from rlpost.config import schema as settings
from rlpost.config.schema import AdapterKind
from rlpost.errors import AdapterError
from rlpost.weights.adapter_settings import check_settings
from rlpost.weights.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, merged_weight
from rlpost.weights.kind_settings import check_start
from tests.peft_kinds import MERGED

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 10}
NO_LINEAR_LAYERS = (
    *("ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING"),
    *("P_TUNING", "PREFIX_TUNING", "PROMPT_TUNING"),
)
CHANGES_THE_BASE = ("pissa", "pissa_niter_4", "olora")
KEEPS_THE_BASE = (True, "gaussian", "eva", "orthogonal", "mica")


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40, bias=False)
        self.second = nn.Linear(40, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def base() -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers()


def untrained(**kwargs: Any) -> PeftModel:
    return get_peft_model(
        base(), LoraConfig(r=4, lora_alpha=10, target_modules=["first", "second"], **kwargs)
    )


def train(model: PeftModel) -> None:
    """In place of training: every tensor of the adapter moves."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


def assert_is_the_policy_of(model: PeftModel, adapter: Adapter, weights: nn.Module) -> None:
    """Merging `adapter` into `weights` gives what PEFT's own merge of `model` gives."""
    theirs = model.merge_and_unload()
    for name in ("first", "second"):
        ours = merged_weight(adapter, name, getattr(weights, name).weight.detach())
        torch.testing.assert_close(ours, getattr(theirs, name).weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", CHANGES_THE_BASE)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_start_that_changes_the_base_is_refused_and_pefts_conversion_is_the_policy(
    start: str, use_rslora: bool, tmp_path: Path
) -> None:
    model = untrained(init_lora_weights=start, use_rslora=use_rslora)
    assert not torch.allclose(model.base_model.model.first.base_layer.weight, base().first.weight, atol=1e-2)
    model.save_pretrained(tmp_path / "untrained")
    train(model)
    model.save_pretrained(tmp_path / "as_it_is")
    with pytest.raises(AdapterError, match=f"'{start}': .*base.*path_initial_model_for_weight_conversion"):
        Adapter.load(tmp_path / "as_it_is")
    model.save_pretrained(
        tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "untrained")
    )
    converted = Adapter.load(tmp_path / "out")
    assert converted.config["r"] == 8
    assert_is_the_policy_of(model, converted, base())


def test_the_base_of_such_a_start_saved_as_a_model_is_the_other_way_out(tmp_path: Path) -> None:
    model = untrained(init_lora_weights="pissa")
    train(model)
    model.save_pretrained(tmp_path)
    changed = PeftModel.from_pretrained(base(), tmp_path).unload()
    file = tmp_path / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": True}))
    assert_is_the_policy_of(model, Adapter.load(tmp_path), changed)


@pytest.mark.parametrize(
    "start", ["corda", "loftq", "lora_ga", "PiSSA", "PISSA_NITER_16", "olora_of_the_future"]
)
def test_other_starts_that_change_the_base_are_refused_by_name(start: str) -> None:
    with pytest.raises(AdapterError, match=f"init_lora_weights = '{start}'.*unload"):
        check_settings(PLAIN | {"init_lora_weights": start})


def test_loftq_is_offered_no_conversion_since_peft_has_none() -> None:
    with pytest.raises(AdapterError) as refused:
        check_settings(PLAIN | {"init_lora_weights": "loftq"})
    assert "path_initial" not in str(refused.value)


@pytest.mark.parametrize("start", KEEPS_THE_BASE)
def test_starts_that_keep_the_base_are_taken(start: bool | str, tmp_path: Path) -> None:
    model = untrained(init_lora_weights=start)
    assert torch.equal(model.base_model.model.first.base_layer.weight, base().first.weight)
    train(model)
    model.save_pretrained(tmp_path)
    assert_is_the_policy_of(model, Adapter.load(tmp_path), base())


def test_everything_that_this_version_of_peft_writes_by_default_is_taken() -> None:
    written = LoraConfig(target_modules=["first"], task_type="CAUSAL_LM").to_dict()
    check_settings(json.loads(json.dumps(written, default=lambda value: sorted(value))))
    assert {field.name for field in dataclasses.fields(LoraConfig)} - {"runtime_config"} == set(written)


@pytest.mark.parametrize("left_out", [("use_dora",), ("use_rslora",), ("use_dora", "use_rslora")])
def test_older_configs_without_a_flag_mean_false(left_out: tuple[str, ...], tmp_path: Path) -> None:
    model = untrained()
    train(model)
    model.save_pretrained(tmp_path)
    file = tmp_path / CONFIG_FILE
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in left_out}))
    adapter = Adapter.load(tmp_path)
    assert_is_the_policy_of(model, adapter, base())
    check_start(adapter.config, settings.LoraConfig(rank=4, alpha=10.0))
    with pytest.raises(AdapterError, match="use_rslora=False"):
        check_start(adapter.config, settings.LoraConfig(kind=AdapterKind.rslora, rank=4, alpha=10.0))


# What the first PEFT releases wrote, and what a release to come may write of what was not used.
@pytest.mark.parametrize(
    "others", [{"merge_weights": False, "enable_lora": None}, {"use_something": False, "its_config": {}}]
)
def test_unknown_settings_that_are_off_are_taken(others: dict[str, Any]) -> None:
    check_settings(PLAIN | others)


WRONG: list[tuple[str, Any]] = [
    *(("lora_alpha", value) for value in (None, "16", math.nan, math.inf, True, [16])),
    *(("r", value) for value in (None, "4", 4.0, 0, -4, True)),
    *((flag, value) for flag in ("use_rslora", "use_dora") for value in ("false", "true", 0, 1, None, [])),
    *(("init_lora_weights", value) for value in (None, 1, "unheard_of", ["pissa"])),
    ("alora_invocation_tokens", [1, 2]),
    ("layer_replication", [[0, 4], [2, 5]]),
    ("fan_in_fan_out", True),
    ("lora_bias", True),
    ("bias", "all"),
    ("bias", None),
    *(("rank_pattern", {"first": rank}) for rank in (0, 2.5, "4", True, None)),
    *(("alpha_pattern", {"first": alpha}) for alpha in (math.nan, "4", True, None)),
    ("rank_pattern", 4),
    ("modules_to_save", ["second"]),
    ("target_parameters", ["w"]),
    ("trainable_token_indices", [3]),
    ("use_qalora", True),
    ("use_bdlora", {"a": 1}),
    ("arrow_config", {"top_k": 3}),
    ("kasa_config", {"x": 1}),
    ("velora_config", {"x": 1}),
    ("monteclora_config", {"x": 1}),
    ("megatron_config", {"x": 1}),
    ("loftq_config", {"loftq_bits": 4}),
    ("corda_config", {"x": 1}),
    ("lora_ga_config", {"x": 1}),
    ("lora_dropout", "0.1"),
    ("lora_dropout", math.nan),
    ("target_modules", 3),
    ("target_modules", [3]),
    ("layers_to_transform", "1"),
    ("base_model_name_or_path", 7),
    ("a_setting_of_the_future", True),
    ("a_setting_of_the_future", 0),  # may be a value of its own, such as a first layer
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_setting_of_another_type_or_meaning_is_refused_by_key_and_value(key: str, value: Any) -> None:
    with pytest.raises(AdapterError, match=rf"Adapter setting {key} = .*\. Supported: "):
        check_settings(PLAIN | {key: value})


@pytest.mark.parametrize("kind", ["lora", "A_KIND_OF_THE_FUTURE", None, 3])
def test_kinds_that_peft_does_not_have_are_named(kind: Any) -> None:
    with pytest.raises(AdapterError, match=f"PEFT's kind {kind!r}, which PEFT .* does not have"):
        check_settings({"peft_type": kind})


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *((kind, "does not change the weights of linear layers") for kind in NO_LINEAR_LAYERS),
        ("POLY", "number of a task"),
        ("SHADOW", "second model"),
        ("XLORA", "what the input is"),
    ],
)
def test_kinds_that_are_no_merge_are_refused_by_name_and_reason(kind: str, reason: str) -> None:
    with pytest.raises(AdapterError, match=f"PEFT's kind '{kind}', which cannot be merged .*{reason}.*Train"):
        check_settings({"peft_type": kind, "target_modules": ["q_proj"]})


def test_no_kind_of_peft_is_forgotten() -> None:
    """A new release's kinds are taken or refused by rule; the lists of this test say which we have looked at."""
    unknown = []
    for kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        try:
            check_settings({"peft_type": kind.value})
        except AdapterError:
            unknown.append(kind.value)
    assert sorted(unknown) == sorted([*NO_LINEAR_LAYERS, "POLY", "SHADOW", "XLORA", "LORA"])


@pytest.mark.parametrize("case", MERGED)
def test_everything_that_peft_writes_for_a_kind_is_taken(case: str) -> None:
    config = PeftConfig.from_peft_type(
        **{"target_modules": ["first"], "task_type": "CAUSAL_LM", **MERGED[case]}
    )
    check_settings(json.loads(json.dumps(config.to_dict(), default=lambda value: sorted(value))))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modules_to_save", ["second"]),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("target_parameters", ["w"]),
        ("trainable_token_indices", [3]),
        ("corda_config", {"cache_file": "a.pickle"}),
        ("init_lora_weights", "unheard_of"),
        ("a_setting_of_the_future", True),
    ],
)
@pytest.mark.parametrize("kind", ["OFT", "VERA", "ADALORA"])
def test_what_adapts_more_than_linear_layers_is_refused_in_every_kind(
    kind: str, key: str, value: Any
) -> None:
    with pytest.raises(AdapterError, match=rf"Adapter setting {key} = .*\. Supported: "):
        check_settings({"peft_type": kind, key: value})


def test_a_config_without_a_kind_is_not_pefts() -> None:
    with pytest.raises(AdapterError, match="lacks peft_type"):
        check_settings({"r": 4, "lora_alpha": 8})


def rewritten(folder: Path, name: str, change: Any) -> None:
    file = folder / WEIGHTS_FILE
    tensors = load_file(file)
    save_file({key: change(value) if name in key else value for key, value in tensors.items()}, file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: torch.where(torch.arange(t.numel()).view(t.shape) == 3, math.nan, t), "1 of 160 values"),
        (lambda t: t / 0.0, "NaN or infinite"),
        (lambda t: t.to(torch.int8), "is int8"),
        (lambda t: t.to(torch.float8_e4m3fn), "is float8_e4m3fn"),
        (lambda t: t.to(torch.float8_e5m2), "is float8_e5m2"),
        (lambda t: t.bool(), "is bool"),
    ],
)
def test_tensors_that_are_no_weights_are_refused_by_name(change: Any, words: str, tmp_path: Path) -> None:
    model = untrained()
    train(model)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, "first.lora_B", change)
    with pytest.raises(AdapterError, match=rf"first\.lora_B\.weight' .*{words}"):
        Adapter.load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    untrained().save_pretrained(tmp_path)
    rewritten(tmp_path, "lora_", lambda tensor: tensor.to(dtype))
    assert {tensor.dtype for tensor in Adapter.load(tmp_path).tensors.values()} == {dtype}


@pytest.mark.parametrize("shape", [(39,), (1,), (40, 1), ()])
def test_a_magnitude_of_another_length_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    untrained(use_dora=True).save_pretrained(tmp_path)
    rewritten(tmp_path, "first.lora_magnitude_vector", lambda _: torch.ones(shape))
    with pytest.raises(AdapterError, match=r"'first': lora_magnitude_vector is \(.*40 output rows"):
        Adapter.load(tmp_path)


@pytest.mark.parametrize("version", ["x", "", "-1", "1.5", "\u00b2", "9" * 5000, "None"])
def test_a_version_that_is_no_number_is_refused(version: str, tmp_path: Path) -> None:
    untrained().save_pretrained(tmp_path)
    file = tmp_path / WEIGHTS_FILE
    save_file(load_file(file), file, metadata={"format": "pt", "version": version})
    with pytest.raises(AdapterError, match=rf"{WEIGHTS_FILE}: its metadata has version"):
        Adapter.load(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"peft_type": "LORA"', "\udcff", "null", '"LORA"'])
def test_a_config_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    untrained().save_pretrained(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(AdapterError, match=CONFIG_FILE):
        Adapter.load(tmp_path)
