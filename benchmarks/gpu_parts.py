"""The parts of benchmarks.gpu that use a model. Each takes a Setup, prints its results and raises if one is wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.subjects import Case
from benchmarks.timing import Side, in_turns
from rlpost.algorithms import roles
from rlpost.weights.models import TINY

THREADS = min(8, max(1, (os.cpu_count() or 2) // 2))  # for parts that also compute on the CPU
PRIME_RL = 13_342  # tokens/s: Qwen3-0.6B, LoRA of rank 16, rows of 16,384 tokens, one H100 80 GB
RANK = 16
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
FAMILY: dict[str, Any] = {
    "tie_word_embeddings": True,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "bos_token_id": None,
}
QWEN3 = FAMILY | {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
}
SMALL = FAMILY | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the smallest size that vLLM supports on a CPU
    "intermediate_size": 128,
    "vocab_size": 1024,
}


@dataclass(frozen=True)
class Setup:
    """The settings that all parts share."""

    device: str
    toy: bool
    folder: Path  # the model's folder

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"

    @property
    def row(self) -> int:
        """The number of tokens of a long row."""
        return 512 if self.toy else 16_384

    @property
    def shape(self) -> dict[str, Any]:
        """The model's shape, in transformers' names."""
        return SMALL if self.toy else QWEN3

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> str:
        """The peak memory of tensors since the last call."""
        if self.device != "cuda":
            return "memory not measured"
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return f"peak {peak:.2f} GiB"


def model(setup: Setup) -> None:
    from transformers import AutoModelForCausalLM, Qwen3Config

    if setup.device == "cuda":
        print(f"  {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}")
    config = Qwen3Config(**setup.shape, max_position_embeddings=40_960, rope_theta=1e6, rms_norm_eps=1e-6)
    torch.manual_seed(0)
    with torch.device(setup.device):
        made = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, setup.dtype))
    made.save_pretrained(setup.folder)
    for name in TOKENIZER:
        shutil.copy(TINY / name, setup.folder)
    print(f"  {sum(p.numel() for p in made.parameters()) / 1e6:.1f} million parameters")


def learner(setup: Setup) -> None:
    for checkpointing in (False, True):
        try:
            _learner(setup, checkpointing)
        except torch.OutOfMemoryError as error:
            print(f"  checkpointing {checkpointing}: {str(error).splitlines()[0]}")
    print(f"  prime-rl publishes {PRIME_RL} tokens/s for this work on one H100")


def _learner(setup: Setup, checkpointing: bool) -> None:
    from rlpost.config.schema import Dtype, LoraConfig
    from rlpost.learner.model import actor_critic

    lora = LoraConfig(rank=RANK, alpha=2.0 * RANK)
    model = actor_critic.build(setup.folder, Dtype[setup.dtype], lora, 0, (roles.POLICY,), None)
    if checkpointing:
        model.checkpoint_activations()
    model.fuse()
    model.to(setup.device)
    step = _learner_step(setup, model)
    setup.peak()
    [timing] = in_turns({f"checkpointing {checkpointing}": Side(step)}, repeats=3).values()
    rates = ", ".join(f"{1 / seconds:.0f}" for seconds in timing.seconds)
    print(f"  {timing.name}: {rates} tokens/s, {setup.peak()}", flush=True)
    if not checkpointing:
        print(_profile(setup, step))


def _learner_step(setup: Setup, model: Any) -> Callable[[], int]:
    """One optimizer step on one long row. All its tokens except the first are in the loss."""
    from rlpost.algorithms.roles import POLICY
    from rlpost.learner.model.packing import Row, collate, slot_starts
    from rlpost.learner.model.prefixes import Group

    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(setup.shape["vocab_size"], (setup.row,), generator=dice).tolist()
    rows = [Row(ids, [0] + [1] * (setup.row - 1))]
    optimizer = torch.optim.AdamW(model.parameters_of(POLICY), lr=1e-4, fused=setup.device == "cuda")

    def step() -> int:
        micro = collate(rows, slot_starts(rows), [Group(0, (0,))]).to(torch.device(setup.device))
        logprobs_N = model(micro, (POLICY,), 1.0).of(POLICY)
        (-logprobs_N.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        setup.wait()
        return setup.row

    return step


def _profile(setup: Setup, step: Callable[[], int]) -> str:
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CUDA if setup.device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as record:
        step()
    by = f"self_{setup.device}_time_total"
    return record.key_averages().table(sort_by=by, row_limit=15, max_name_column_width=70)


def iteration(setup: Setup) -> None:
    _iterations(setup)


def sleep(setup: Setup) -> None:
    if setup.device == "cuda":
        _iterations(setup, "rollout.sleep=true", "rollout.gpu_memory_utilization=0.8")
    else:
        print("  vLLM has a sleep mode on a GPU alone")


def _iterations(setup: Setup, *words: str) -> None:
    from benchmarks.runs import ITERATIONS_ONLY, run

    gpus = (
        ["rollout.gpus=0.5", "learner.gpus=0.5"] if setup.device == "cuda" else ["rollout.kv_cache_gib=0.1"]
    )
    episodes = 8 if setup.toy else 256
    found = run(
        [
            "experiment=generalpoints_ppo",
            f"model={setup.folder}",
            f"dtype={setup.dtype}",
            f"lora.rank={RANK}",
            f"rollout.episodes={episodes}",
            "rollout.workers=1",
            "algo.iterations=2",
            "algo.critic_warmup=0",
            *gpus,
            *words,
            *ITERATIONS_ONLY,
        ]
    )
    for line in found.iterations:
        parts = ("total", "rollout", "sleep", "logprobs", "update", "wake", "swap")
        told = ", ".join(f"{part} {line[key]:.2f}" for part in parts if (key := f"seconds/{part}") in line)
        print(f"  iteration {line['iteration']}: {told} s; {line['tokens/sampled']:.0f} sampled tokens")


def swap(setup: Setup) -> None:
    from benchmarks.swap import compare

    print(compare(_case(setup)))


def decode(setup: Setup) -> None:
    from benchmarks.decode import compare

    print(compare(_case(setup)))


def compiled(setup: Setup) -> None:
    from benchmarks.decode import compare

    print(compare(_case(setup, eager=False)))


def _case(setup: Setup, eager: bool = True) -> Case:
    return Case(str(setup.folder), setup.dtype, THREADS, repeats=3, eager=eager)
