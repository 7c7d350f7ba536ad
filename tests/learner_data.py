"""What the learner's tests share: a very small model, settings for it, and episodes of random tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlpost.config.compose import algorithm_defaults
from rlpost.config.schema import AlgoName, Config, Dtype
from rlpost.types import Ending, Example, Finish, Trajectory, Turn

VOCAB = 64


def write_small_model(folder: Path) -> Path:
    """A random two-layer Llama of 40,000 parameters, with grouped-query attention and a tied head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@contextmanager
def plain_attention(base: Any) -> Iterator[Any]:
    """The causal language model `base` with transformers' own attention: rows as they are, nothing packed."""
    before = base.config._attn_implementation
    base.config._attn_implementation = "eager"
    try:
        yield base
    finally:
        base.config._attn_implementation = before


def small_config() -> Config:
    cfg = Config(model="small", dtype=Dtype.float32)
    cfg.lora.rank, cfg.lora.alpha = 4, 8.0
    cfg.learner.threads, cfg.learner.micro_batch_tokens, cfg.learner.timeout_s = 1, 96, 180.0
    cfg.algo.critic_warmup, cfg.algo.warmup_steps, cfg.sft.warmup_steps = 0, 2, 2
    cfg.algo.learning_rate = 3e-3
    return cfg


def with_algorithm(cfg: Config, name: AlgoName) -> Config:
    """A copy of `cfg` under the algorithm's own defaults."""
    merged = OmegaConf.merge(OmegaConf.structured(cfg), algorithm_defaults(name))
    found = OmegaConf.to_object(merged)
    assert isinstance(found, Config)
    found.algo.name = name
    return found


def random_turn(rng: random.Random, context: int) -> Turn:
    count = rng.randint(2, 6)
    context_ids = tuple(rng.randrange(VOCAB) for _ in range(context))
    answer_ids = tuple(rng.randrange(VOCAB) for _ in range(count))
    logprobs = tuple(-4.0 + 0.1 * rng.random() for _ in range(count))
    reward = rng.choice([-1.0, 0.0, 5.0])
    return Turn(context_ids, answer_ids, logprobs, "", "", Finish.STOP, reward, "CORRECT", 0)


def random_episodes(
    count: int, seed: int = 0, ending: Ending = Ending.TERMINATED, group_size: int = 1
) -> list[Trajectory]:
    """Episodes of one to three turns, 8 to 36 tokens."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        turns = [random_turn(rng, rng.randint(6, 12) if k == 0 else 3) for k in range(rng.randint(1, 3))]
        found.append(
            Trajectory("e", "v", "train", "i", 0, i, i // group_size, i, tuple(turns), ending, success=False)
        )
    return found


def examples_of(episodes: list[Trajectory]) -> list[Example]:
    return [Example(tuple(t.token_ids), tuple(t.loss_mask)) for t in episodes]


def write_rounded(folder: Path, target: Path) -> Path:
    """The model of `folder`, its linear layers rounded to NF4, as a plain folder."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlpost.kernels.nf4 import round_trip
    from rlpost.weights.models import linear_layers

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name in linear_layers(folder):
        weight = model.get_submodule(name).weight
        weight.data = round_trip(weight)
    model.save_pretrained(target)
    return target
