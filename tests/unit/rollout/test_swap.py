"""The in-place writer on plain layers, as a GPU engine has them: no vLLM needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rlpost.errors import ModelError, SwapError
from rlpost.kernels.nf4 import round_trip
from rlpost.rollout.engine.in_place import InPlaceWriter
from rlpost.rollout.engine.weight_writer import WriteReport
from rlpost.weights.adapters import Adapter, merged_weight
from rlpost.weights.base_weights import BaseWeights, Nf4Weights
from rlpost.weights.update import weight_update

WIDTH, RANK = 64, 4
ROWS = {"a.q_proj": 1024, "a.k_proj": 512, "a.o_proj": 2048}


class UnquantizedLinearMethod:
    """Named as vLLM's, which is how a layer that can be merged is told."""

    def apply(self, layer: nn.Module, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(inputs, layer.get_parameter("weight"), bias)


class Layer(nn.Module):
    def __init__(self, weight: torch.Tensor, rows: list[int] | None = None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.output_size_per_partition, self.input_size_per_partition = weight.shape
        self.output_partition_sizes = rows or [len(weight)]
        self.output_sizes = self.output_partition_sizes
        self.tp_rank, self.tp_size = 0, 1
        self.params_dtype = weight.dtype
        self.quant_method = UnquantizedLinearMethod()


class Model(nn.Module):
    packed_modules_mapping = {"qk_proj": ["q_proj", "k_proj"]}  # noqa: RUF012  as vLLM's models have it

    def __init__(self, base: dict[str, torch.Tensor], dtype: torch.dtype):
        super().__init__()
        self.a = nn.Module()
        rows = [ROWS["a.q_proj"], ROWS["a.k_proj"]]
        self.a.qk_proj = Layer(torch.cat([base["a.q_proj"], base["a.k_proj"]]).to(dtype), rows)
        self.a.o_proj = Layer(base["a.o_proj"].to(dtype, copy=True))

    def live(self, module: str) -> torch.Tensor:
        if module == "a.o_proj":
            return self.a.get_submodule("o_proj").get_parameter("weight")
        fused = self.a.get_submodule("qk_proj").get_parameter("weight")
        return fused[: ROWS["a.q_proj"]] if module == "a.q_proj" else fused[ROWS["a.q_proj"] :]


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    return {name: torch.randn(rows, WIDTH, generator=dice).bfloat16() for name, rows in ROWS.items()}


@pytest.fixture
def folder(base: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file({f"{name}.weight": weight for name, weight in base.items()}, tmp_path / "model.safetensors")
    return tmp_path


def adapter(version: int, modules: list[str], size: float = 0.3) -> Adapter:
    dice = torch.Generator().manual_seed(version)
    tensors = {}
    for module in modules:
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, WIDTH, generator=dice)
        tensors[f"{prefix}.lora_B.weight"] = size * torch.randn(ROWS[module], RANK, generator=dice)
    return Adapter.create({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}, tensors, version)


def write(writer: InPlaceWriter, folder: Path, new: Adapter | None) -> WriteReport:
    return writer.write(None if new is None else weight_update(new, BaseWeights(folder)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_module_holds_base_plus_delta_and_the_rest_the_base(
    base: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype
) -> None:
    model = Model(base, dtype)
    writer = InPlaceWriter(model, BaseWeights(folder))
    for new in (adapter(1, ["a.q_proj", "a.o_proj"]), adapter(2, ["a.k_proj"]), adapter(3, list(ROWS)), None):
        report = write(writer, folder, new)
        adapted = () if new is None else new.modules
        assert (report.modules_bound, report.modules_expected) == (len(adapted), len(adapted))
        for name, weight in base.items():
            expected = merged_weight(new, name, weight) if new is not None and name in adapted else weight
            assert torch.equal(model.live(name), expected.to(dtype)), name


def test_the_rounding_loss_is_the_share_of_the_update_that_bfloat16_drops(
    base: dict[str, torch.Tensor], folder: Path
) -> None:
    """Against all rows in float64; a tenth apart at most, since the engine measures every eighth row."""
    writer = InPlaceWriter(Model(base, torch.bfloat16), BaseWeights(folder))
    for size in (0.3, 0.01):
        new = adapter(1, list(ROWS), size)
        lost, whole = 0.0, 0.0
        for name, weight in base.items():
            factors = new.factors(name)
            delta = factors.B.double() @ factors.A.double()
            merged = weight.double() + delta
            lost += float((merged.bfloat16().double() - merged).square().sum())
            whole += float(delta.square().sum())
        assert write(writer, folder, new).rounding_loss == pytest.approx((lost / whole) ** 0.5, rel=0.1)
    exact = InPlaceWriter(Model(base, torch.float32), BaseWeights(folder))
    assert write(exact, folder, new).rounding_loss == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_in_nf4_is_written_first_and_updates_go_over_it(
    base: dict[str, torch.Tensor], folder: Path, dtype: torch.dtype
) -> None:
    """Every layer, whether an adapter names it or not; and without an adapter the rounded base is live again."""
    (folder / "config.json").write_text('{"vocab_size": 9}')
    model, weights = Model(base, dtype), Nf4Weights(folder)
    writer, new = InPlaceWriter(model, BaseWeights(folder)), adapter(1, ["a.q_proj"])
    writer.set_base(weights)
    for update in (None, weight_update(new, weights), None):
        writer.write(update)
        for name, weight in base.items():
            expected = round_trip(weight).to(dtype)
            if update is not None and name == "a.q_proj":
                expected = merged_weight(new, name, expected).to(dtype)
            assert torch.equal(model.live(name), expected), name
            assert not torch.equal(model.live(name), weight.to(dtype))


def test_a_layer_that_cannot_take_the_base_is_named(base: dict[str, torch.Tensor], folder: Path) -> None:
    (folder / "config.json").write_text('{"vocab_size": 9}')
    model = Model(base, torch.float32)
    model.a.get_submodule("o_proj").quant_method = object()
    writer = InPlaceWriter(model, BaseWeights(folder))
    with pytest.raises(SwapError, match=r"lora\.base=nf4 changes 1 weights.*a\.o_proj"):
        writer.set_base(Nf4Weights(folder))
    assert torch.equal(model.live("a.q_proj"), base["a.q_proj"].float())


def test_an_unmergeable_layer_is_named(base: dict[str, torch.Tensor], folder: Path) -> None:
    model = Model(base, torch.float32)
    model.a.get_submodule("o_proj").quant_method = object()
    before = model.live("a.q_proj").clone()
    with pytest.raises(SwapError, match=r"1 of 3 changed parameters.*a\.o_proj"):
        write(InPlaceWriter(model, BaseWeights(folder)), folder, adapter(1, list(ROWS)))
    assert torch.equal(model.live("a.q_proj"), before)


def test_a_packed_kernel_that_is_not_known_is_refused(base: dict[str, torch.Tensor], folder: Path) -> None:
    model = Model(base, torch.float32)
    model.a.get_submodule("o_proj").weight = nn.Parameter(torch.empty(0), requires_grad=False)
    with pytest.raises(SwapError, match=r"a\.o_proj: unknown packed kernel"):
        write(InPlaceWriter(model, BaseWeights(folder)), folder, adapter(1, ["a.o_proj"]))


def test_base_weights_come_from_all_shards(base: dict[str, torch.Tensor], tmp_path: Path) -> None:
    files = {f"{name}.weight": f"part-{i}.safetensors" for i, name in enumerate(ROWS)}
    for name, file in files.items():
        save_file({name: base[name.removesuffix(".weight")]}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    weights = BaseWeights(tmp_path)
    for name, weight in base.items():
        assert torch.equal(weights[f"{name}.weight"], weight)
    (tmp_path / "part-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"part-1\.safetensors is missing"):
        BaseWeights(tmp_path)
