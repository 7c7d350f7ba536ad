"""A base in NF4 outside of the learner: its weights, updates over them, canaries, refusals, merged models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlpost.command.main import main
from rlpost.config.schema import BaseKind, Config, LoraConfig, Task
from rlpost.errors import AdapterError, ModelError
from rlpost.kernels.nf4 import round_trip
from rlpost.tasks.canary import plain_peft_canary
from rlpost.validate.model import check_model
from rlpost.weights.adapters import WEIGHTS_FILE, Adapter
from rlpost.weights.base_weights import BaseWeights, Nf4Weights, base_weights
from rlpost.weights.models import linear_layers
from rlpost.weights.update import weight_update
from tests.learner_data import write_small_model
from tests.peft_kinds import MERGED, save, trained

IDS = tuple(range(5, 45))
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("small-model"))


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def dequantized(folder: Path) -> Any:
    """The model with its linear layers rounded to NF4."""
    model = loaded(folder)
    for name in linear_layers(folder):
        weight = model.get_submodule(name).weight
        weight.data = round_trip(weight)
    return model


def on_nf4(folder: Path, tmp_path: Path, settings: Mapping[str, Any] = LORA) -> Path:
    """The folder of an adapter of the dequantized model, which says so."""
    plain = Adapter.load(save(trained(dequantized(folder), settings), tmp_path / "by-peft"))
    config = {**plain.config, "base_model_name_or_path": str(folder)}
    Adapter.create(config, plain.tensors, 1, BaseKind.nf4).save(tmp_path / "adapter")
    return tmp_path / "adapter"


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        table = model.eval()(input_ids=torch.tensor([IDS])).logits[0, :-1].log_softmax(-1)
    return table.gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]


def test_linear_layers_are_rounded_one_by_one_and_nothing_else_is(small: Path) -> None:
    stored, weights = BaseWeights(small), Nf4Weights(small)
    assert weights.changed == tuple(linear_layers(small))
    assert not weights._codes
    for name, weight in stored.items():
        module = name.removesuffix(".weight")
        expected = round_trip(weight) if module in weights.changed else weight
        assert torch.equal(weights[name], expected), name
        assert torch.equal(weights[name], expected), "asked for again"
        assert (module in weights.changed) != torch.equal(weights[name], weight)


def test_a_model_that_is_quantized_already_is_refused(small: Path, tmp_path: Path) -> None:
    tensors = {
        name: tensor.to(torch.float8_e4m3fn) if "q_proj" in name else tensor
        for name, tensor in load_file(small / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    weights = base_weights(tmp_path, BaseKind.nf4)
    assert weights["model.layers.0.self_attn.k_proj.weight"].dtype == torch.float32
    with pytest.raises(ModelError, match=r"q_proj is stored in float8_e4m3fn.*lora\.base=nf4"):
        weights["model.layers.0.self_attn.q_proj.weight"]


@pytest.mark.parametrize("case", ["rank pattern, DoRA", "OFT", "HiRA"])
def test_kinds_that_peft_merges_are_merged_over_the_rounded_weights(
    case: str, small: Path, tmp_path: Path
) -> None:
    folder = on_nf4(small, tmp_path, MERGED[case])
    expected = PeftModel.from_pretrained(dequantized(small), folder).merge_and_unload()
    for name, weight in weight_update(Adapter.load(folder), Nf4Weights(small)):
        torch.testing.assert_close(weight, expected.get_parameter(name), rtol=0, atol=2e-5)


def test_an_adapter_says_its_base_and_plain_peft_loads_it(small: Path, tmp_path: Path) -> None:
    folder = on_nf4(small, tmp_path)
    assert Adapter.load(folder).base is BaseKind.nf4
    assert Adapter.load(tmp_path / "by-peft").base is None
    expected = logprobs(PeftModel.from_pretrained(dequantized(small), tmp_path / "by-peft"))
    assert torch.equal(logprobs(PeftModel.from_pretrained(dequantized(small), folder)), expected)


def test_a_base_that_is_not_known_is_refused(small: Path, tmp_path: Path) -> None:
    path = on_nf4(small, tmp_path) / WEIGHTS_FILE
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), "base": "nf3"}
    save_file(load_file(path), path, metadata)
    with pytest.raises(AdapterError, match="has base 'nf3'"):
        Adapter.load(path.parent)


@pytest.mark.parametrize("its", [*BaseKind, None])
@pytest.mark.parametrize("asked", list(BaseKind))
@pytest.mark.parametrize("task", [Task.eval, Task.rl])
def test_a_base_that_differs_from_the_adapters_is_refused(
    task: Task, asked: BaseKind, its: BaseKind | None, small: Path, tmp_path: Path
) -> None:
    plain = Adapter.load(save(trained(loaded(small), LORA), tmp_path / "by-peft"))
    Adapter.create(plain.config, plain.tensors, 1, its).save(tmp_path / "adapter")
    lora = LoraConfig(rank=4, alpha=8.0, base=asked, target_modules="q_proj,v_proj,down_proj")
    cfg = Config(task=task, model="small", adapter=str(tmp_path / "adapter"), lora=lora)
    if its in (asked, None):
        check_model(cfg, small)
        return
    with pytest.raises(
        AdapterError, match=rf"trained on lora\.base={its.value}.*Give lora\.base={its.value}"
    ):
        check_model(cfg, small)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_canary_tells_which_base_is_meant(stored: torch.dtype, small: Path, tmp_path: Path) -> None:
    """The engine's side by merged weights, PEFT's by a forward pass. On one base they agree to rounding; the other base
    under the same adapter is far beyond the default of rollout.max_canary_gap."""
    AutoModelForCausalLM.from_pretrained(small, dtype=stored).save_pretrained(tmp_path / "model")
    folder = on_nf4(tmp_path / "model", tmp_path)
    canary = torch.tensor(plain_peft_canary(tmp_path / "model", folder, IDS, BaseKind.nf4).logprobs)
    served = {}
    for kind in BaseKind:
        base, adapter = base_weights(tmp_path / "model", kind), Adapter.load(folder)
        of_any = Adapter.create(adapter.config, adapter.tensors, 1)
        merged = dequantized(tmp_path / "model") if kind is BaseKind.nf4 else loaded(tmp_path / "model")
        merged.load_state_dict(dict(weight_update(of_any, base)), strict=False)
        served[kind] = float((logprobs(merged) - canary).abs().mean())
    assert served[BaseKind.nf4] < 1e-4
    assert served[BaseKind.stored] > Config().rollout.max_canary_gap


def test_a_merged_model_is_the_rounded_one_with_the_adapter(
    random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Modules without an adapter are rounded too. The command says which base it took."""
    folder = on_nf4(random_model, tmp_path)
    assert main(["merge", str(folder), str(tmp_path / "merged"), "--dtype", "float32"]) == 0
    assert "lora.base=nf4" in capsys.readouterr().out
    expected = PeftModel.from_pretrained(dequantized(random_model), folder)
    torch.testing.assert_close(logprobs(loaded(tmp_path / "merged")), logprobs(expected), rtol=0, atol=2e-5)
