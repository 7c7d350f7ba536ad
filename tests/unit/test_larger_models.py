"""The commands of docs/larger-models.md: accepted, and planned to fit the GPUs that they name.

The models are built without weights, by transformers, from the sizes that their publisher gives.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from rlpost.config.compose import compose
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.plan import memory_plan
from rlpost.memory.shared_gpu import engines_beside_a_rank, least
from rlpost.validate.checks import validate
from rlpost.weights.stored_model import StoredModel

TEXT = (Path(__file__).parents[2] / "docs" / "larger-models.md").read_text(encoding="utf-8")
COMMANDS = dict(
    zip(
        re.findall(r"^## (.*B) on", TEXT, re.M),
        re.findall(r"```\n(rlpost .*?)\n```", TEXT, re.S),
        strict=True,
    )
)
ROWS = {row[0]: row for row in re.findall(r"^\| Qwen3-(.*B) \| (\d) x (\d+) GB.* \| (.*) \|$", TEXT, re.M)}
# Width, width of the MLP, layers, heads, whether the head is tied; billions of parameters.
SIZES = {
    "0.6B": (1024, 3072, 28, 16, True, 0.596),
    "1.7B": (2048, 6144, 28, 16, True, 1.72),
    "8B": (4096, 12288, 36, 32, False, 8.19),
}
GIB = 2**30


def shape_of(size: str) -> ModelShape:
    width, inner, layers, heads, tied, billions = SIZES[size]
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    entries = {name: {"dtype": "BF16", "shape": list(p.shape)} for name, p in model.named_parameters()}
    shape = ModelShape.of(StoredModel(config.to_dict(), entries))
    assert shape.count / 1e9 == pytest.approx(billions, rel=0.01)
    return shape


@pytest.mark.parametrize("size", SIZES)
def test_a_recipe_is_accepted_and_fits_its_gpus(size: str) -> None:
    _, name, *words = shlex.split(COMMANDS[size])
    cfg = compose([f"experiment={name}", *words])
    validate(cfg, {word.partition("=")[0] for word in words})
    assert cfg.model == f"Qwen/Qwen3-{size}"
    _, gpus, gigabytes, planned = ROWS[size]
    gpu = int(gigabytes) * 10**9
    plan = memory_plan(cfg, shape_of(size))
    engine, rank = plan.named("rollout worker"), plan.named("learner rank")
    told = [float(number) for number in re.findall(r"\d+\.\d", planned)]
    if engines_beside_a_rank(cfg):
        assert int(gpus) == 1
        parts = [least(plan, cfg, gpu)]
        assert cfg.rollout.gpu_memory_utilization * gpu > engine.device_size()
    else:
        assert int(gpus) == cfg.rollout.workers + cfg.learner.workers
        parts = [engine.device_size(certain_only=True), rank.device_size(certain_only=True)]
    assert rank.device_size() < gpu, "full micro-batches fit too"
    assert told == [pytest.approx(part / GIB, abs=0.06) for part in (*parts, gpu)]
    assert max(parts) < gpu
