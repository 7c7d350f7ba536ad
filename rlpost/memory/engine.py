"""The memory of a rollout worker: vLLM's weights and KV cache, its largest step, and what a swap needs."""

from __future__ import annotations

import math

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.schema import Config, Task
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.parts import BYTES, FLOAT, Part, Process
from rlpost.memory.runtime import ENGINE_LIBRARIES, TOKENIZER
from rlpost.memory.trained import trained_numbers
from rlpost.rollout.engine.settings import PREFILL_TOKENS

# A sampler's tensors of (sequences, V) in float32: logits, log-probs, probabilities, noise.
SAMPLER = 4


def rollout_worker(cfg: Config, shape: ModelShape) -> Process:
    """One of `rollout.workers` engines, with the processes of all its ranks. `cfg.dtype` must be settled.

    Environments live in the same process; what a user's own needs is not known here.
    """
    ranks = cfg.rollout.tensor_parallel
    processes = ranks + (ranks > 1)  # with several ranks the actor's own process only schedules
    libraries = Part("libraries", processes * ENGINE_LIBRARIES)
    tokenizer = Part("tokenizer", TOKENIZER * shape.words)
    parts = [Part("weights", weights(cfg, shape), kept=False)]
    if cfg.task in (Task.rl, Task.sft) or cfg.adapter is not None:
        parts += [Part("a swap", ranks * swap(cfg, shape))]
    step = Part("a step's tensors", step_bytes(cfg, shape), certain=False, kept=False)
    if cfg.rollout.gpus > 0:
        # vLLM takes its share of the GPU for all of these at its start, and refuses to start if they do not fit.
        host = (libraries, tokenizer, *(asleep(cfg, shape) if cfg.rollout.sleep else ()))
        return Process("rollout worker", cfg.rollout.workers, host, (*parts, step))
    cache = Part("KV cache", int(cfg.rollout.kv_cache_gib * 2**30), certain=False)
    return Process("rollout worker", cfg.rollout.workers, (libraries, tokenizer, *parts, cache, step))


def weights(cfg: Config, shape: ModelShape) -> int:
    """The model in `dtype` (lora.base=nf4 too: engines serve the rounded weights). On a CPU vLLM keeps a packed copy of
    a tied table for the head."""
    copy = shape.words * shape.width if shape.tied and cfg.rollout.gpus == 0 else 0
    return BYTES[cfg.dtype] * (shape.count + copy)


def asleep(cfg: Config, shape: ModelShape) -> tuple[Part, Part]:
    """What an engine on a GPU holds on the host from its first sleep on (rollout.sleep): a copy of its weights.

    It is pinned memory, which torch keeps for the next sleep. Torch rounds each block up to a power of two, so the
    copy takes up to twice its size.
    """
    size = weights(cfg, shape)
    return Part("weights while it sleeps", size), Part("rounding of their blocks", size, certain=False)


def swap(cfg: Config, shape: ModelShape) -> int:
    """What a swap holds: the adapter that arrived, and the largest parameter merged (float32) and rounded."""
    largest = max(
        (math.prod(size) for size in shape.parameters.values())
        if TABLE[cfg.lora.kind].whole
        else (rows * columns for rows, columns in shape.linear.values()),
        default=0,
    )
    return FLOAT * trained_numbers(shape, cfg.lora) + (2 * FLOAT + BYTES[cfg.dtype]) * largest


def step_bytes(cfg: Config, shape: ModelShape) -> int:
    """The tensors of one engine step: prompts go through a layer together, and a token is drawn for each sequence."""
    rollout, each = cfg.rollout, BYTES[cfg.dtype]
    together = max(PREFILL_TOKENS, rollout.max_model_len)
    sequences = min(rollout.max_num_seqs, math.ceil(rollout.episodes / rollout.workers))
    tokens = min(together, sequences * rollout.max_model_len)
    layer = each * (2 * shape.width + 3 * shape.inner)
    return tokens * layer + sequences * shape.words * (each + SAMPLER * FLOAT)
