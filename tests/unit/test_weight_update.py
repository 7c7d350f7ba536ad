"""Weight updates of every kind of adapter, with PEFT's own merge of a whole model as the witness."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlpost.errors import AdapterError
from rlpost.weights.adapters import Adapter, merged_weight
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.peft_merge import PeftLayers
from rlpost.weights.update import check_merges, weight_update
from tests.learner_data import write_small_model
from tests.peft_kinds import MERGED, save, trained


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


@pytest.fixture(scope="module")
def with_bias(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose attention layers have biases that are not zero."""
    folder = tmp_path_factory.mktemp("with-bias")
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, attention_bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    model.save_pretrained(folder)
    return folder


def on(folder: Path, case: dict[str, Any]) -> PeftModel:
    return trained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), case)


@pytest.mark.parametrize("case", MERGED)
def test_an_update_is_what_peft_merges(case: str, small: Path, tmp_path: Path) -> None:
    model = on(small, MERGED[case])
    adapter = Adapter.load(save(model, tmp_path))
    base = BaseWeights(small)
    update = weight_update(adapter, base)
    assert (update.version, update.fingerprint) == (0, adapter.fingerprint)
    check_merges(update)
    ours = dict(update)
    theirs = model.merge_and_unload().state_dict()
    assert ours.keys() < theirs.keys()
    for name, weight in theirs.items():
        change = (weight - base[name].float()).norm() if name in base else torch.tensor(0.0)
        if name in ours:
            assert change > 0, name
            assert (ours[name] - weight).norm() <= 1e-3 * change, name
        else:
            assert change == 0, name


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
OFT = MERGED["OFT"]


@pytest.mark.parametrize(
    "kind", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
def test_the_formula_and_pefts_layers_agree(kind: dict[str, bool], small: Path, tmp_path: Path) -> None:
    model = on(small, {"peft_type": "LORA", "r": 4, "lora_alpha": 10, **kind})
    adapter, base = Adapter.load(save(model, tmp_path)), BaseWeights(small)
    layers = PeftLayers(adapter.config, adapter.tensors, base)
    weights = [f"{module}.weight" for module in adapter.modules]
    assert sorted(layers.shapes) == weights == list(weight_update(adapter, base).shapes)
    for module, name in zip(adapter.modules, weights, strict=True):
        torch.testing.assert_close(
            layers.merged(name, base[name]), merged_weight(adapter, module, base[name])
        )


def test_the_base_is_left_and_a_weight_can_be_asked_for_again(small: Path, tmp_path: Path) -> None:
    adapter, base = Adapter.load(save(on(small, OFT), tmp_path)), BaseWeights(small)
    update, W0 = weight_update(adapter, base), base[Q_PROJ]
    first, buffer = update.merged(Q_PROJ, W0), torch.empty(W0.shape)
    assert update.merged(Q_PROJ, W0, buffer) is buffer
    assert torch.equal(first, buffer)
    assert not torch.equal(first, W0.float())
    half = update.merged(Q_PROJ, W0.bfloat16())  # an engine that holds W0 in bfloat16 merges over that
    assert 0 < (half - first).abs().max() < 0.01
    dict(update)
    for name, weight in BaseWeights(small).items():
        assert torch.equal(base[name], weight)


def test_one_layer_at_a_time_is_widened(small: Path, tmp_path: Path) -> None:
    """Before and after a merge, PEFT's layers hold the memory-mapped checkpoint, not copies of it."""
    adapter = Adapter.load(save(on(small, OFT), tmp_path))
    layers = PeftLayers(adapter.config, adapter.tensors, BaseWeights(small))

    def held() -> list[int]:
        return [layer.get_base_layer().weight.data_ptr() for layer in layers._layers.values()]

    before = held()
    for name in layers.shapes:
        layers.merged(name, BaseWeights(small)[name])
        assert held() == before


def test_what_peft_draws_leaves_the_process_dice_alone(small: Path, tmp_path: Path) -> None:
    adapter = Adapter.load(save(on(small, MERGED["VeRA"]), tmp_path))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    dict(weight_update(adapter, BaseWeights(small)))
    assert torch.equal(torch.rand(4), expected)


def test_a_name_or_a_shape_that_the_adapter_does_not_have_is_refused(small: Path, tmp_path: Path) -> None:
    update = weight_update(Adapter.load(save(on(small, OFT), tmp_path)), BaseWeights(small))
    for name, shape in (("model.layers.0.self_attn.o_proj.weight", (32, 32)), (Q_PROJ, (32, 16))):
        with pytest.raises(AdapterError, match=f"{name}.*no value of shape"):
            update.merged(name, torch.zeros(shape))


# A merge of these changes biases: of k, v (IA3) or of every module.
MOVE_BIASES = {"IA3", "RoAd"}


@pytest.mark.parametrize(
    "case", ["OFT", "VeRA", "rank pattern", "rank pattern, DoRA", "RandLora", *MOVE_BIASES]
)
@pytest.mark.parametrize("zero", [False, True], ids=["biases", "biases that are zero"])
def test_biases_are_merged_with_the_weights(case: str, zero: bool, with_bias: Path, tmp_path: Path) -> None:
    """A stored bias may be zero, which no merge changes, and the kind may change biases all the same."""
    folder = with_bias
    if zero:
        folder = Path(shutil.copytree(with_bias, tmp_path / "zero"))
        named = load_file(folder / "model.safetensors")
        save_file(
            {name: t.zero_() if name.endswith("bias") else t for name, t in named.items()},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    model = on(folder, MERGED[case])
    update = weight_update(Adapter.load(save(model, tmp_path / "adapter")), BaseWeights(folder))
    check_merges(update)
    ours = dict(update)
    assert any(name.endswith("bias") for name in ours) is (case in MOVE_BIASES)
    for name, value in model.merge_and_unload().state_dict().items():
        expected = ours.get(name, BaseWeights(folder).get(name, value))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def whole(base: BaseWeights, *names: str) -> Adapter:
    tensors = {name: base[name] + torch.randn(base[name].shape) for name in names}
    return Adapter.create({"peft_type": "FULL", "target_modules": ["q_proj"]}, tensors, 3)


def test_whole_tensors_are_the_new_values(with_bias: Path, tmp_path: Path) -> None:
    base = BaseWeights(with_bias)
    names = ["model.embed_tokens.weight", "model.norm.weight", Q_PROJ, Q_PROJ.replace("weight", "bias")]
    made = whole(base, *names)
    made.save(tmp_path / "adapter")
    adapter = Adapter.load(tmp_path / "adapter")
    assert (adapter.version, adapter.fingerprint) == (3, made.fingerprint)
    update = weight_update(adapter, base)
    check_merges(update)
    assert update.shapes == {name: tuple(base[name].shape) for name in sorted(names)}
    assert all(torch.equal(value, made.tensors[name]) for name, value in update)
    buffer = torch.empty(base[Q_PROJ].shape)
    assert update.merged(Q_PROJ, base[Q_PROJ].bfloat16(), buffer) is buffer
    assert torch.equal(buffer, made.tensors[Q_PROJ])


def test_whole_tensors_of_another_model_are_refused(small: Path, with_bias: Path) -> None:
    adapter = whole(BaseWeights(with_bias), Q_PROJ, Q_PROJ.replace("weight", "bias"), "lm_head.weight")
    with pytest.raises(AdapterError, match=r"2 of 3 whole tensors.*q_proj\.bias.*absent.*lm_head"):
        weight_update(adapter, BaseWeights(small))  # which has a tied head and no biases


@pytest.mark.parametrize(("key", "value"), [("r", 8), ("bias", "all"), ("modules_to_save", ["lm_head"])])
def test_whole_tensors_with_settings_of_other_kinds_are_refused(key: str, value: Any, small: Path) -> None:
    with pytest.raises(AdapterError, match=f"Adapter setting {key} ="):
        Adapter.create({"peft_type": "FULL", key: value}, {Q_PROJ: BaseWeights(small)[Q_PROJ]}, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_whole_tensors_that_are_not_finite_are_refused(value: float, small: Path) -> None:
    with pytest.raises(AdapterError, match="NaN or infinite"):
        Adapter.create({"peft_type": "FULL"}, {Q_PROJ: torch.full((32, 32), value)}, 0)


def test_an_adapter_that_does_more_than_its_merge_is_refused(small: Path, tmp_path: Path) -> None:
    """PVeRA that goes on drawing at inference: each forward is another policy."""
    model = on(small, {**MERGED["PVeRA"], "sample_at_inference": True})
    update = weight_update(Adapter.load(save(model, tmp_path)), BaseWeights(small))
    with pytest.raises(AdapterError, match="PVERA computes something else than its merged weight"):
        check_merges(update)


def test_a_kind_whose_layers_have_no_merge_is_refused(small: Path, tmp_path: Path) -> None:
    update = weight_update(Adapter.load(save(on(small, {"peft_type": "LILY"}), tmp_path)), BaseWeights(small))
    with pytest.raises(AdapterError, match="PEFT cannot merge an adapter of kind LILY"):
        check_merges(update)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (
            {"peft_type": "LN_TUNING", "target_modules": ["input_layernorm"]},
            "LN_TUNING on the model's linear",
        ),
        (
            {"peft_type": "TRAINABLE_TOKENS", "target_modules": ["embed_tokens"], "token_indices": [3]},
            "TRAINABLE",
        ),
        ({"peft_type": "LOHA", "target_modules": ["q_proj", "lm_head"]}, "do not hold.*lm_head.*head cannot"),
    ],
    ids=["norms", "tokens", "head"],
)
def test_what_adapts_more_than_linear_layers_is_refused(
    case: dict[str, Any], words: str, small: Path, tmp_path: Path
) -> None:
    adapter = Adapter.load(save(on(small, case), tmp_path))
    with pytest.raises(AdapterError, match=words):
        weight_update(adapter, BaseWeights(small))


def test_an_adapter_of_another_model_is_refused(small: Path, with_bias: Path, tmp_path: Path) -> None:
    adapter = Adapter.load(save(on(small, OFT), tmp_path))  # of two blocks
    with pytest.raises(AdapterError, match=r"do not hold.*6 tensors differ|do not hold.*3 tensors differ"):
        weight_update(adapter, BaseWeights(with_bias))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base_is_seen(start: str, small: Path, tmp_path: Path) -> None:
    """By what it does to the weights, whatever its name: `check_settings` does not come to it here."""
    model = on(small, {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": start})
    tensors = {name: each.clone() for name, each in get_peft_model_state_dict(model).items()}
    base = BaseWeights(small)
    with pytest.raises(AdapterError, match="LORA changes the base in 6 modules"):
        PeftLayers(model.peft_config["default"].to_dict(), tensors, base)
    for name, weight in BaseWeights(small).items():
        assert torch.equal(base[name], weight)


def test_tensors_that_are_not_those_that_were_fingerprinted_are_refused(small: Path, tmp_path: Path) -> None:
    adapter = Adapter.load(save(on(small, OFT), tmp_path))
    name = next(iter(adapter.tensors))
    other = dataclasses.replace(adapter, tensors={**adapter.tensors, name: adapter.tensors[name] + 1})
    with pytest.raises(AdapterError, match="did not arrive whole"):
        weight_update(other, BaseWeights(small))


@pytest.mark.parametrize(
    ("key", "value"), [("oft_block_size", 7), ("oft_block_size", "8"), ("target_modules", 3)]
)
def test_settings_that_peft_cannot_follow_are_an_adapters_error(
    key: str, value: Any, small: Path, tmp_path: Path
) -> None:
    adapter = Adapter.load(save(on(small, OFT), tmp_path))
    with pytest.raises(AdapterError):
        weight_update(Adapter.create({**adapter.config, key: value}, adapter.tensors, 0), BaseWeights(small))
