"""Adapters: files, refusals, and the merged weight against PEFT's own merge."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from rlpost.config.adapter_kinds import TABLE
from rlpost.errors import AdapterError, OutputError
from rlpost.weights.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter, fingerprint, merged_weight
from tests.adapter_kinds import LORAS_FAMILY

KINDS: dict[str, dict[str, Any]] = {kind.value: dict(TABLE[kind].settings) for kind in LORAS_FAMILY}


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40, bias=False)
        self.second = nn.Linear(40, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def peft_model(kind: str, seed: int = 0) -> PeftModel:
    """TwoLayers under PEFT, every adapter tensor random (PEFT starts with B = 0, m = ||W||)."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["first", "second"], **KINDS[kind])
    model = get_peft_model(TwoLayers(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def adapter_of(model: PeftModel, version: int = 3) -> Adapter:
    return Adapter.create(model.peft_config["default"].to_dict(), get_peft_model_state_dict(model), version)


@pytest.fixture
def adapter() -> Adapter:
    return adapter_of(peft_model("lora"))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weight_equals_pefts_own_merge(kind: str) -> None:
    model = peft_model(kind)
    adapter = adapter_of(model)
    bases = {
        name: getattr(model.base_model.model, name).base_layer.weight.clone() for name in ("first", "second")
    }
    merged = model.merge_and_unload()
    assert adapter.modules == ("first", "second")
    for name, base in bases.items():
        theirs = getattr(merged, name).weight
        assert not torch.allclose(theirs, base, atol=1e-2)
        torch.testing.assert_close(merged_weight(adapter, name, base), theirs, rtol=1e-5, atol=1e-6)


def test_merged_weight_by_hand() -> None:
    A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0]])
    W0 = torch.tensor([[0.0, -2.0], [5.0, 12.0]])
    name = "base_model.model.m"
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2}
    lora = Adapter.create(config, tensors, 0)
    assert merged_weight(lora, "m", W0).tolist() == [[6.0, 10.0], [5.0, 12.0]]
    tensors[f"{name}.lora_magnitude_vector"] = torch.tensor([1.0, 26.0])
    dora = Adapter.create(config | {"use_dora": True}, tensors, 0)
    norm = math.sqrt(6.0**2 + 10.0**2)
    expected = torch.tensor([[6.0 / norm, 10.0 / norm], [10.0, 24.0]])
    torch.testing.assert_close(merged_weight(dora, "m", W0), expected)


def test_merged_weight_leaves_the_base_and_fills_the_buffer(adapter: Adapter) -> None:
    base = torch.randn(40, 24, dtype=torch.bfloat16)
    before, buffer = base.clone(), torch.empty(40, 24)
    merged = merged_weight(adapter, "first", base, out=buffer)
    assert merged is buffer
    assert torch.equal(base, before)
    torch.testing.assert_close(merged, merged_weight(adapter, "first", before.float()))


@pytest.mark.parametrize("base", [torch.zeros(24, 40), torch.zeros(40, 25)])
def test_merged_weight_refuses_another_models_base(adapter: Adapter, base: torch.Tensor) -> None:
    with pytest.raises(AdapterError, match=r"'first'.*\(40, 24\)"):
        merged_weight(adapter, "first", base)


@pytest.mark.parametrize("pattern", ["rank_pattern", "alpha_pattern"])
def test_merged_weight_refuses_patterns_which_only_peft_follows(adapter: Adapter, pattern: str) -> None:
    other = Adapter.create({**adapter.config, pattern: {"first": 4}}, adapter.tensors, 0)
    with pytest.raises(AdapterError, match="one rank and alpha"):
        merged_weight(other, "first", torch.zeros(40, 24))


def test_merged_weight_refuses_an_unknown_module(adapter: Adapter) -> None:
    with pytest.raises(AdapterError, match="third"):
        merged_weight(adapter, "third", torch.zeros(40, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_what_is_saved(kind: str, tmp_path: Path) -> None:
    model = peft_model(kind)
    inputs = torch.randn(5, 24)
    adapter_of(model).save(tmp_path / "adapter")
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(TwoLayers(), tmp_path / "adapter").eval()
    assert torch.equal(loaded(inputs), model(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saves_is_loaded(kind: str, tmp_path: Path) -> None:
    model = peft_model(kind)
    model.save_pretrained(tmp_path)
    loaded = Adapter.load(tmp_path)
    assert loaded.version == 0
    assert loaded.fingerprint == adapter_of(model).fingerprint


def test_save_and_load_keep_everything(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "runs" / "adapter")
    loaded = Adapter.load(tmp_path / "runs" / "adapter")
    assert (loaded.version, loaded.fingerprint, loaded.config) == (3, adapter.fingerprint, adapter.config)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in adapter.tensors.items())


def test_save_replaces_and_leaves_nothing_else(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "stale.txt").write_text("from an earlier save")
    other = adapter_of(peft_model("dora"), version=4)
    other.save(tmp_path / "adapter")
    assert Adapter.load(tmp_path / "adapter").fingerprint == other.fingerprint
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["adapter", CONFIG_FILE, WEIGHTS_FILE]


def test_a_save_that_fails_leaves_the_old_one(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter.save(tmp_path / "adapter")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OutputError, match=r"adapter\n.*No space(?s:.)*free space"):
        adapter_of(peft_model("dora")).save(tmp_path / "adapter")
    assert Adapter.load(tmp_path / "adapter").fingerprint == adapter.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_what_a_save_that_was_killed_has_left_is_in_no_ones_way(adapter: Adapter, tmp_path: Path) -> None:
    for name in (".tmp-adapter", ".old-adapter", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    adapter.save(tmp_path / "adapter")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["adapter", CONFIG_FILE, WEIGHTS_FILE]


def test_an_adapter_does_not_follow_the_learner(adapter: Adapter) -> None:
    model = peft_model("lora")
    handed_out = adapter_of(model)
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    assert fingerprint(handed_out.tensors) == handed_out.fingerprint == adapter.fingerprint


def test_the_fingerprint_sees_one_bit_a_name_a_shape_and_a_dtype(adapter: Adapter) -> None:
    name = next(iter(adapter.tensors))
    tensor = adapter.tensors[name]
    flipped = tensor.clone()
    flipped.view(torch.int32)[0, 0] ^= 1
    changed = [flipped, tensor.reshape(-1), tensor.view(torch.int32)]
    prints = {fingerprint({**adapter.tensors, name: value}) for value in changed}
    prints.add(fingerprint({name + "x" if k == name else k: v for k, v in adapter.tensors.items()}))
    assert len(prints | {adapter.fingerprint}) == 5


def test_pickling_keeps_the_fingerprint(adapter: Adapter) -> None:
    copy = pickle.loads(pickle.dumps(adapter))  # noqa: S301  our own bytes, as Ray ships them
    assert fingerprint(copy.tensors) == adapter.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "XLORA"}, "XLORA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["second"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"r": 8}, "rank 8"),
    ],
)
def test_settings_that_would_merge_wrong_are_refused(
    adapter: Adapter, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        Adapter.create({**adapter.config, **change}, adapter.tensors, 0)


def test_unknown_and_missing_tensors_are_refused(adapter: Adapter) -> None:
    stray = {"base_model.model.embed.lora_embedding_A": torch.zeros(2, 2)}
    with pytest.raises(AdapterError, match="lora_embedding_A"):
        Adapter.create(adapter.config, {**adapter.tensors, **stray}, 0)
    without = {k: v for k, v in adapter.tensors.items() if k != "base_model.model.first.lora_B.weight"}
    with pytest.raises(AdapterError, match="first"):
        Adapter.create(adapter.config, without, 0)
    with pytest.raises(AdapterError, match="no tensors"):
        Adapter.create(adapter.config, {}, 0)
    with pytest.raises(AdapterError, match="lora_alpha"):
        Adapter.create({"peft_type": "LORA", "r": 4}, adapter.tensors, 0)


def test_broken_folders_are_refused(adapter: Adapter, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(AdapterError, match=WEIGHTS_FILE):
        Adapter.load(folder)
    adapter.save(folder)
    weights = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(weights[:-40])
    with pytest.raises(AdapterError, match="broken"):
        Adapter.load(folder)
    (folder / WEIGHTS_FILE).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(AdapterError, match="not those that were saved"):
        Adapter.load(folder)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    config = json.loads((folder / CONFIG_FILE).read_text())
    for text in ("{", "[]", json.dumps(config | {"peft_type": "PREFIX_TUNING"})):
        (folder / CONFIG_FILE).write_text(text)
        with pytest.raises(AdapterError):
            Adapter.load(folder)
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(AdapterError, match=CONFIG_FILE):
        Adapter.load(folder)
