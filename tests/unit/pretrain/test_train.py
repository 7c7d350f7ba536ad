"""The recipe of the bundled model: its batches, and its precision: the machine's, and bfloat16 in the file."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlpost.cluster import precision as precisions
from rlpost.cluster.precision import TORCH_DTYPES, Product
from rlpost.config.schema import Dtype, TinyBaseConfig
from rlpost.pretrain import corpus, train
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


def test_a_row_wider_than_a_batch_is_a_batch_of_its_own() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert {ids_BT.shape[0] for ids_BT, _ in islice(train.batches(tokenizer, 3, 8), 20)} == {1}


def test_batches_hold_every_conversation_once_in_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "POOL", 64)
    tokenizer, rng = AutoTokenizer.from_pretrained(TINY), random.Random(3)
    rows = [train.encode(corpus.conversation(rng), tokenizer) for _ in range(64)]
    found, counts = [], dict[int, list[int]]()
    for ids_BT, labels_BT in islice(train.batches(tokenizer, 3, 1024), 64):
        count, width = ids_BT.shape
        assert count * width <= 1024
        assert width % train.WIDTHS == 0
        counts.setdefault(width, []).append(count)
        lengths = (labels_BT != train.IGNORE).flip(1).int().argmax(1)  # an answer, trained on, ends each row
        for ids, labels, padded in zip(ids_BT.tolist(), labels_BT.tolist(), lengths.tolist(), strict=True):
            assert set(ids[width - padded :]) <= {tokenizer.pad_token_id}
            found.append(train.LabelledTokens(ids[: width - padded], labels[: width - padded]))
        if len(found) == len(rows):
            break
    assert sorted(map(repr, found)) == sorted(map(repr, rows))
    for width, each in counts.items():
        assert sum(count < 1024 // width for count in each) <= 1, "only what is left of the pool"
