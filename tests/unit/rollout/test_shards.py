"""Shards of random models of random sizes, on layers that stand in for vLLM's; no vLLM needed.

The witness divides a model by what its parts are for: a rank's query heads, the key-value heads that these read, the
neurons of its share of the MLP, the tokens that it owns. The code under test knows sizes alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from rlpost.errors import SwapError
from rlpost.rollout.engine.in_place import InPlaceWriter
from rlpost.rollout.engine.live_layer import Probe
from rlpost.rollout.engine.shards import ALL, Rank, piece, stacked
from rlpost.rollout.engine.weight_writer import WriteReport, together
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.update import weight_update
from tests.unit.rollout.test_swap import UnquantizedLinearMethod

HEAD = 2  # width of an attention head


class UnquantizedEmbeddingMethod(UnquantizedLinearMethod):
    """Named as vLLM's."""


@dataclass(frozen=True)
class Sizes:
    world: int
    queries: int
    keys: int
    neurons: int
    words: int
    hidden: int
    fused: bool  # q, k, v (gate, up) are one parameter of the checkpoint too
    tied: bool


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    world = draw(st.sampled_from([1, 2, 4, 8]))
    keys = draw(st.sampled_from([k for k in (1, 2, 4, 8) if k % world == 0 or world % k == 0]))
    queries = draw(st.integers(1, 2)) * max(world, keys)
    neurons, hidden = world * draw(st.integers(1, 3)), draw(st.integers(1, 9))
    return Sizes(
        world,
        queries,
        keys,
        neurons,
        draw(st.integers(1, 150)),
        hidden,
        draw(st.booleans()),
        draw(st.booleans()),
    )


def random_base(size: Sizes, dice: torch.Generator) -> dict[str, Tensor]:
    """A checkpoint of one block, with biases everywhere."""
    q, kv, h = size.queries * HEAD, size.keys * HEAD, size.hidden
    rows = {"q_proj": q, "k_proj": kv, "v_proj": kv, "gate_proj": size.neurons, "up_proj": size.neurons}
    if size.fused:
        rows = {"qkv_proj": q + 2 * kv, "gate_up_proj": 2 * size.neurons}
    shapes: dict[str, tuple[int, ...]] = {f"b.{name}.weight": (count, h) for name, count in rows.items()}
    shapes |= {f"b.{name}.bias": (count,) for name, count in rows.items()}
    shapes |= {"b.o_proj.weight": (h, q), "b.down_proj.weight": (h, size.neurons)}
    shapes |= {"b.o_proj.bias": (h,), "b.norm.weight": (h,), "embed.weight": (size.words, h)}
    if not size.tied:
        shapes |= {"head.weight": (size.words, h)}
    return {name: torch.randn(shape, generator=dice) for name, shape in shapes.items()}


def expected(size: Sizes, base: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """What the rank's tensors hold, by what each row and column is for."""
    mine = range(rank * size.queries // size.world, (rank + 1) * size.queries // size.world)
    read = sorted({query * size.keys // size.queries for query in mine})
    neurons = range(rank * size.neurons // size.world, (rank + 1) * size.neurons // size.world)
    wide = {"q": size.queries * HEAD, "k": size.keys * HEAD}
    begins = {"q_proj": 0, "k_proj": wide["q"], "v_proj": wide["q"] + wide["k"], "gate_proj": 0}
    begins["up_proj"] = size.neurons

    def rows(module: str, part: str, chosen: list[int]) -> Tensor:
        fused = "gate_up_proj" if module in ("gate_proj", "up_proj") else "qkv_proj"
        if size.fused:
            return base[f"b.{fused}.{part}"][[begins[module] + each for each in chosen]]
        return base[f"b.{module}.{part}"][chosen]

    of_queries, of_keys = ([head * HEAD + i for head in heads for i in range(HEAD)] for heads in (mine, read))
    held: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        chosen = {"q_proj": of_queries, "k_proj": of_keys, "v_proj": of_keys}
        held[f"b.qkv_proj.{part}"] = torch.cat([rows(name, part, its) for name, its in chosen.items()])
        both = [rows(name, part, list(neurons)) for name in ("gate_proj", "up_proj")]
        held[f"b.gate_up_proj.{part}"] = torch.cat(both)
    held["b.o_proj.weight"] = base["b.o_proj.weight"][:, of_queries]
    held["b.down_proj.weight"] = base["b.down_proj.weight"][:, list(neurons)]
    held |= {name: base[name] for name in ("b.o_proj.bias", "b.norm.weight")}
    for table in ("embed", "head"):
        owned = torch.zeros(local_words(size), size.hidden)
        for word in range(size.words):
            if word // local_words(size) == rank:
                owned[word % local_words(size)] = base[f"{'embed' if size.tied else table}.weight"][word]
        held[f"{table}.weight"] = owned
    return held


def local_words(size: Sizes) -> int:
    return -(-size.words // 64) * 64 // size.world


class Model(nn.Module):
    """A rank's part of the model, with what vLLM's layers say of themselves."""

    packed_modules_mapping: dict[str, list[str]]

    def __init__(self, size: Sizes, rank: int, held: dict[str, Tensor]):
        super().__init__()
        self.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
        self.packed_modules_mapping["gate_up_proj"] = ["gate_proj", "up_proj"]
        if size.fused:
            self.packed_modules_mapping = {}
        self.b = nn.Module()
        local_q, local_kv = size.queries // size.world, max(1, size.keys // size.world)
        outputs = {
            "qkv_proj": [local_q * HEAD, local_kv * HEAD, local_kv * HEAD],
            "gate_up_proj": [size.neurons // size.world] * 2,
            "o_proj": [size.hidden],
            "down_proj": [size.hidden],
        }
        for name, rows in outputs.items():
            self.b.add_module(name, self.layer(held, f"b.{name}", rows, size, rank))
        qkv = self.b.get_submodule("qkv_proj")
        qkv.total_num_heads, qkv.total_num_kv_heads = size.queries, size.keys  # type: ignore[assignment]
        qkv.head_size = qkv.v_head_size = HEAD  # type: ignore[assignment]
        self.b.get_submodule("gate_up_proj").output_sizes = [size.neurons] * 2  # type: ignore[assignment]
        self.b.norm = nn.Module()
        self.b.norm.weight = nn.Parameter(held["b.norm.weight"].clone())
        for name in ("embed", "head"):
            table = self.layer(held, name, [local_words(size)], size, rank)
            table.quant_method = UnquantizedEmbeddingMethod()  # type: ignore[assignment]
            start, stop = (min(n * local_words(size), size.words) for n in (rank, rank + 1))
            table.shard_indices = SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=stop)  # type: ignore[assignment]
            self.add_module(name, table)
        if size.tied:
            self.get_submodule("head").weight = self.get_submodule("embed").weight

    @staticmethod
    def layer(held: dict[str, Tensor], name: str, rows: list[int], size: Sizes, rank: int) -> nn.Module:
        made = nn.Module()
        made.weight = nn.Parameter(held[f"{name}.weight"].clone())
        bias = held.get(f"{name}.bias")
        made.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone()))
        made.output_size_per_partition, made.input_size_per_partition = made.weight.shape  # type: ignore[assignment]
        made.output_partition_sizes = made.output_sizes = rows  # type: ignore[assignment]
        made.tp_rank, made.tp_size = rank, size.world  # type: ignore[assignment]
        made.params_dtype = made.weight.dtype  # type: ignore[assignment]
        made.quant_method = UnquantizedLinearMethod()  # type: ignore[assignment]
        return made


@given(sizes(), st.integers(0, 1000))
@example(Sizes(8, 8, 8, 24, words=1, hidden=1, fused=True, tied=False), 126)  # a sum of three weights near 0
@settings(max_examples=60)
def test_every_rank_holds_its_share_of_every_new_value(size: Sizes, seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    base = random_base(size, dice)
    new = {name: tensor + torch.randn(tensor.shape, generator=dice) for name, tensor in base.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(base, Path(folder) / "model.safetensors")
        stored = BaseWeights(Path(folder))
        update = weight_update(Adapter.create({"peft_type": "FULL"}, new, 1), stored)
        reports = []
        for rank in range(size.world):
            model = Model(size, rank, expected(size, base, rank))
            writer = InPlaceWriter(model, stored)
            reports.append(writer.write(update))
            for name, value in expected(size, new, rank).items():
                assert torch.equal(model.get_parameter(name), value), (name, rank)
            writer.write(None)
            for name, value in expected(size, base, rank).items():
                assert torch.equal(model.get_parameter(name), value), (name, rank)
        whole = together(reports)
        assert (whole.modules_bound, whole.modules_expected) == (len(new), len(new))


@pytest.mark.parametrize("neurons", [3, 16, 4000])
def test_an_output_near_zero_is_proven_by_the_size_of_its_row(neurons: int) -> None:
    """A layer with one output, whose terms cancel: rounding is large beside the output, not beside the terms."""
    inputs = torch.ones(2, neurons)
    inputs[0] = torch.nn.functional.one_hot(torch.tensor(0), neurons)
    weight = torch.rand(1, neurons, generator=torch.Generator().manual_seed(0)) + 1
    weight[0, -1] -= weight.sum()
    computed = torch.tensor([[weight[0, 0]], [1e-5]])
    layer: Any = SimpleNamespace(name="b", dtype=torch.float32, forward=lambda asked: computed)
    expected = torch.tensor([[weight[0, 0]], [0.0]])
    assert Probe(layer, inputs, expected).holds()
    computed[1] = 0.05  # 1% of what the smallest weight adds
    assert not Probe(layer, inputs, expected).holds()


def test_a_layout_that_is_not_known_is_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    size = Sizes(2, 4, 2, 4, 10, 3, fused=False, tied=True)
    base = random_base(size, torch.Generator().manual_seed(0))
    save_file(base, tmp_path / "model.safetensors")
    held = expected(size, base, 1)
    held["b.o_proj.weight"] = held["b.o_proj.weight"].flip(1)
    model = Model(size, 1, held)
    new = {name: tensor + 1 for name, tensor in base.items()}
    update = weight_update(Adapter.create({"peft_type": "FULL"}, new, 1), BaseWeights(tmp_path))
    with pytest.raises(SwapError, match=r"1 of \d+ layers do not hold the checkpoint's.*b\.o_proj"):
        InPlaceWriter(model, BaseWeights(tmp_path)).write(update)
    assert all(torch.equal(model.get_parameter(name), value) for name, value in held.items())


@pytest.mark.parametrize("name", ["b.norm.weight", "b.qkv_proj.bias", "embed.weight", "b.down_proj"])
def test_a_tensor_that_does_not_take_its_value_is_named(name: str, tmp_path: Path) -> None:
    size = Sizes(1, 2, 1, 2, 10, 3, fused=False, tied=True)
    base = random_base(size, torch.Generator().manual_seed(0))
    save_file(base, tmp_path / "model.safetensors")
    writer = InPlaceWriter(Model(size, 0, expected(size, base, 0)), BaseWeights(tmp_path))
    lives = {live.name: live for target in writer._targets.values() for live in target.live}
    live = lives.get(name) or lives[name.removesuffix(".weight")]
    live.write = lambda value: None  # type: ignore[method-assign]
    new = {each: tensor + 1 for each, tensor in base.items()}
    update = weight_update(Adapter.create({"peft_type": "FULL"}, new, 1), BaseWeights(tmp_path))
    with pytest.raises(SwapError, match=f"1 of .* do not compute with what was written .{live.name}."):
        writer.write(update)


def test_pieces_by_hand() -> None:
    assert piece(12, 12, Rank(1, 4)) == ALL
    assert [piece(12, 3, Rank(i, 4)) for i in range(2)] == [slice(0, 3), slice(3, 6)]
    assert [piece(4, 2, Rank(i, 4)).start for i in range(4)] == [0, 0, 2, 2]  # two heads for four ranks
    assert stacked([8, 4, 4], [4, 2, 2], Rank(1, 2)) == (slice(4, 8), slice(10, 12), slice(14, 16))
    for full, local in ((10, 4), (6, 2), (2, 4)):
        with pytest.raises(ValueError, match="ranks' pieces"):
            piece(full, local, Rank(0, 4))


def test_a_rank_that_fails_is_named_and_the_least_proof_counts() -> None:
    reports = [WriteReport("f", 3, 3, 0.1), WriteReport("f", 2, 3, 0.3)]
    assert together(reports) == WriteReport("f", 2, 3, 0.3)
    with pytest.raises(SwapError, match=r"^rank 1 of 2: no room$"):
        together([reports[0], "no room"])
    with pytest.raises(SwapError, match=r"^no room$"):
        together(["no room"])
    with pytest.raises(SwapError, match="not get the same tensors"):
        together([reports[0], WriteReport("g", 3, 3, 0.1)])
