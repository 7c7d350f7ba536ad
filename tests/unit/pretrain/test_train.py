"""The precision of the recipe of the bundled model: that of the machine; its file is bfloat16 in any case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlpost.cluster import precision as precisions
from rlpost.cluster.precision import TORCH_DTYPES, Product
from rlpost.config.schema import Dtype, TinyBaseConfig
from rlpost.pretrain.train import MasterOptimizer, answer_loss, build_model, precision, save
from rlpost.weights.models import TINY


def test_the_saved_model_is_bfloat16_in_whichever_precision_was_computed(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(0)
    sizes = TinyBaseConfig(hidden_size=16, layers=1, heads=2, intermediate_size=8)
    for dtype in (torch.float32, torch.bfloat16):
        model, folder = build_model(sizes, tokenizer), tmp_path / str(dtype)
        optimizer = MasterOptimizer(model, 1e-3, dtype)
        ids_BT = torch.randint(4, 100, (2, 8))
        answer_loss(model, ids_BT, ids_BT).backward()
        optimizer.step(1e-3)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        save(model, tokenizer, folder, {})
        saved = load_file(folder / "model.safetensors")
        masters = {id(parameter): master for parameter, master in optimizer.pairs}
        assert saved.keys() == {
            name for name, _ in model.named_parameters()
        }  # the tied head is not there twice
        for name, parameter in model.named_parameters():
            assert torch.equal(saved[name], masters[id(parameter)].detach().to(torch.bfloat16)), name
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("faster", TORCH_DTYPES)
def test_it_computes_in_the_faster_precision(faster: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(product: Product, dtype: torch.dtype) -> float:
        return 1.0 if dtype is TORCH_DTYPES[faster] else 2.0

    monkeypatch.setattr(precisions, "_seconds_a_row", seconds)
    assert precision(TinyBaseConfig(), Dtype.auto).dtype is faster
