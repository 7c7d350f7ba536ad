"""Weight updates of every kind of adapter, with PEFT's own merge of a whole model as the witness."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
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


Q_PROJ = "model.layers.0.self_attn.q_proj"
OFT = MERGED["OFT"]


@pytest.mark.parametrize(
    "kind", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
def test_the_formula_and_pefts_layers_agree(kind: dict[str, bool], small: Path, tmp_path: Path) -> None:
    model = on(small, {"peft_type": "LORA", "r": 4, "lora_alpha": 10, **kind})
    adapter, base = Adapter.load(save(model, tmp_path)), BaseWeights(small)
    layers = PeftLayers(adapter.config, adapter.tensors, base)
    assert sorted(layers.shapes) == list(adapter.modules) == list(weight_update(adapter, base).shapes)
    for module in adapter.modules:
        W0 = base[f"{module}.weight"]
        torch.testing.assert_close(layers.merged(module, W0), merged_weight(adapter, module, W0))


def test_the_base_is_left_and_a_weight_can_be_asked_for_again(small: Path, tmp_path: Path) -> None:
    adapter, base = Adapter.load(save(on(small, OFT), tmp_path)), BaseWeights(small)
    update, W0 = weight_update(adapter, base), base[f"{Q_PROJ}.weight"]
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
    for module in layers.shapes:
        layers.merged(module, BaseWeights(small)[f"{module}.weight"])
        assert held() == before


def test_what_peft_draws_leaves_the_process_dice_alone(small: Path, tmp_path: Path) -> None:
    adapter = Adapter.load(save(on(small, MERGED["VeRA"]), tmp_path))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    dict(weight_update(adapter, BaseWeights(small)))
    assert torch.equal(torch.rand(4), expected)


def test_a_module_or_a_shape_that_the_adapter_does_not_have_is_refused(small: Path, tmp_path: Path) -> None:
    update = weight_update(Adapter.load(save(on(small, OFT), tmp_path)), BaseWeights(small))
    for module, shape in (("model.layers.0.self_attn.o_proj", (32, 32)), (Q_PROJ, (32, 16))):
        with pytest.raises(AdapterError, match=f"{module}.*no weight of shape"):
            update.merged(module, torch.zeros(shape))


@pytest.mark.parametrize("case", ["OFT", "VeRA", "rank pattern", "rank pattern, DoRA", "RandLora"])
def test_a_bias_that_a_merge_leaves_alone_is_fine(case: str, with_bias: Path, tmp_path: Path) -> None:
    model = on(with_bias, MERGED[case])
    ours = dict(weight_update(Adapter.load(save(model, tmp_path)), BaseWeights(with_bias)))
    theirs = model.merge_and_unload().state_dict()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-4, atol=1e-5)


def test_a_bias_that_a_merge_changes_is_refused(with_bias: Path, tmp_path: Path) -> None:
    update = weight_update(Adapter.load(save(on(with_bias, MERGED["IA3"]), tmp_path)), BaseWeights(with_bias))
    with pytest.raises(AdapterError, match=r"_proj'.*IA3 changes the layer's bias"):
        check_merges(update)


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
