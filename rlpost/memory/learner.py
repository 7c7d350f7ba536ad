"""The memory of a learner rank: base, roles, gradients, optimizer, and the largest step.

    held:  libraries, base W0, weights of each role, optimizer states, gradients
    step:  the activations of a micro-batch, or the optimizer's temporaries, or the loading, whichever is largest

Freed memory stays with the process (`learner_environment`), so its peak is what is held plus the largest step. Sizes
are in bytes.
"""

from __future__ import annotations

import math

from rlpost.algorithms.roles import CRITIC, REFERENCE, roles_for
from rlpost.config.adapter_kinds import TABLE as KINDS
from rlpost.config.presets import TABLE as ALGORITHMS
from rlpost.config.schema import BaseKind, Config, Dtype, Optimizer, Task
from rlpost.memory.model_shape import ModelShape
from rlpost.memory.parts import BYTES, FLOAT, Part, Process
from rlpost.memory.runtime import FIRST_PASS, LEARNER_LIBRARIES
from rlpost.memory.trained import adapted, trained_numbers

STORED = {Dtype.float32: "F32", Dtype.bfloat16: "BF16"}  # in safetensors' words
# Optimizer states of a trained number.
STATES = {Optimizer.adamw: 8, Optimizer.lora_pro: 8, Optimizer.muon: 4, Optimizer.adamw_8bit: 2}
# NF4: half a byte, a byte for 64 weights, 4 bytes for 256 of those (rlpost/kernels/nf4.py).
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)
QUERIES = 256  # rows of attention that rlpost.learner.model.packed_attention computes together
TILE = 256 * 4096 * FLOAT  # logits of rlpost.kernels.linear_logprob
TILES = 3  # logits, their exponentials and one product at once


def learner_rank(cfg: Config, shape: ModelShape, teacher: ModelShape | None = None) -> Process:
    """One of `learner.workers` ranks. `cfg.dtype` must be settled. `teacher`: the model that algo.teacher names."""
    each, ranks, stage = trained_numbers(shape, cfg.lora), cfg.learner.workers, cfg.learner.zero_stage
    roles = roles_for(cfg)
    trained, reference = each * sum(role != REFERENCE for role in roles), each * (REFERENCE in roles)
    loaded = BYTES[cfg.dtype] * (shape.count + (0 if teacher is None else teacher.count))
    shards = ranks if stage == 3 else 1
    base = (loaded - rounded_away(cfg, shape)) // shards
    held = (
        # Mapped pages count, but the system can drop them, so they refuse nothing.
        Part("base weights", base, certain=not mapped(cfg, shape)),
        Part("weights of the roles", FLOAT * ((trained + reference) // shards + each * cfg.retention.kl)),
        Part("gradients", gradients(trained, ranks, stage)),
        Part("optimizer states", optimizer_states(trained, cfg.learner.optimizer, ranks, stage)),
    )
    # NF4 and ZeRO 3 begin with the whole base.
    loading = 0 if mapped(cfg, shape) else loaded - base
    certain = max(FLOAT * each // (ranks if stage else 1), loading)
    at_most = activations(cfg, shape) + TILES * TILE
    step = (
        Part("an optimizer step, or loading", certain, kept=False),
        Part("activations and logits tiles", max(0, at_most - certain), certain=False, kept=False),
        Part("kernels' buffers", FIRST_PASS, certain=False, kept=False),
    )
    libraries = Part("libraries", LEARNER_LIBRARIES)
    if cfg.learner.gpus > 0:
        return Process("learner rank", ranks, (libraries,), (*held, *step))
    return Process("learner rank", ranks, (libraries, *held, *step))


def mapped(cfg: Config, shape: ModelShape) -> bool:
    """Whether the base stays in its files' pages: on a CPU, if it is stored in the run's precision."""
    return cfg.learner.gpus == 0 and shape.dtypes == {STORED[cfg.dtype]}


def rounded_away(cfg: Config, shape: ModelShape) -> int:
    """The bytes that lora.base=nf4 spares in the base's linear layers."""
    if cfg.lora.base is BaseKind.stored:
        return 0
    return int((BYTES[cfg.dtype] - NF4) * shape.linear_count)


def gradients(trained: int, ranks: int, stage: int) -> int:
    """ZeRO 1 and 2 collect a rank's share beside the gradients of the parameters; ZeRO 3 has the share alone."""
    if stage == 0:
        return FLOAT * trained
    share = FLOAT * trained // ranks
    return share if stage == 3 else FLOAT * trained + share


def optimizer_states(trained: int, optimizer: Optimizer, ranks: int, stage: int) -> int:
    """The moments. ZeRO shards them, and adds float32 copies of the parameters in a rank's share."""
    if stage == 0:
        return STATES[optimizer] * trained
    return (STATES[optimizer] + FLOAT) * trained // ranks


def activations(cfg: Config, shape: ModelShape) -> int:
    """What a micro-batch of `learner.micro_batch_tokens` keeps for its backward pass, and the pass's own tensors.

    Episodes of `rollout.max_model_len` tokens are assumed, whose attention keeps the most.
    """
    each, roles = BYTES[cfg.dtype], 2 if _steps_together(cfg) else 1
    layer = _layer(cfg, shape, each)
    kept = shape.layers * (FLOAT * shape.width if cfg.learner.gradient_checkpointing else layer)
    if cfg.learner.gradient_checkpointing:
        kept += layer
    # The last norm, the head's hidden states with their gradients (float32), and the gradients in one MLP.
    around = (2 * FLOAT + 2 * each) * shape.width + FLOAT * shape.width
    passing = 3 * each * shape.inner + 2 * FLOAT * shape.width
    cast = each * trained_numbers(shape, cfg.lora) if _casts(cfg) else 0
    return roles * cast + tokens(cfg) * (roles * (kept + around) + passing)


def tokens(cfg: Config) -> int:
    """The tokens of a full micro-batch: `learner.micro_batch_tokens`, or all of a step if these are fewer."""
    by_rl = math.ceil(cfg.rollout.episodes / (cfg.algo.minibatches * cfg.learner.workers))
    by_sft = math.ceil(cfg.sft.batch_size / cfg.learner.workers)
    # Log-probs are computed for an iteration's episodes at once, but without a backward pass.
    episodes = max(by_rl if cfg.task is Task.rl else 0, by_sft if cfg.sft.steps else 0)
    return min(cfg.learner.micro_batch_tokens, max(1, episodes) * cfg.rollout.max_model_len)


def keys_per_token(length: int) -> int:
    """The mean number of keys for which attention keeps a probability, in a sequence of `length` tokens."""
    return length if length <= QUERIES else (length + QUERIES) // 2


def _layer(cfg: Config, shape: ModelShape, each: int) -> int:
    """Bytes a token that one layer keeps: as in rlpost/learner/model/fused_layers.py, or transformers' layers."""
    width, queries = shape.width, shape.heads * shape.head
    attended = queries + 2 * shape.key_value_heads * shape.head
    probabilities = shape.heads * keys_per_token(cfg.rollout.max_model_len)
    if fused(cfg, shape):
        # Two norms' inputs (float32) and outputs; q, k, v, and q, k once more after rotation; attention; gate, up, MLP.
        rotated = queries + shape.key_value_heads * shape.head
        low = len(adapted(shape, cfg.lora)) * cfg.lora.rank // max(1, shape.layers)
        return 2 * FLOAT * width + each * (
            2 * width + attended + rotated + probabilities + queries + 3 * shape.inner + low
        )
    # The norms also keep what they scale, and the MLP its activation. Under autocast (whole kinds in bfloat16) the
    # residual stream is float32, and each of five linear layers casts its input for itself.
    scaled, inputs = (FLOAT, 5) if _casts(cfg) else (each, 2)
    norms = 2 * (FLOAT + scaled) * width
    return norms + each * (inputs * width + attended + probabilities + queries + 4 * shape.inner)


def fused(cfg: Config, shape: ModelShape) -> bool:
    """Whether the layers run through rlpost.kernels: plain LoRA on a known family, not with ZeRO 3."""
    kind = KINDS[cfg.lora.kind]
    plain = kind.peft_type == "LORA" and not kind.settings["use_dora"]
    return plain and shape.fusible and cfg.learner.zero_stage < 3


def _casts(cfg: Config) -> bool:
    """Whether autocast makes bfloat16 copies of float32 weights: those of whole kinds."""
    return KINDS[cfg.lora.kind].whole and cfg.dtype is Dtype.bfloat16


def _steps_together(cfg: Config) -> bool:
    """Whether policy and critic share an optimizer step. A critic with one step an update takes it alone."""
    algo = cfg.algo
    steps = (algo.critic_epochs or algo.epochs) * algo.minibatches
    return CRITIC in roles_for(cfg) and ALGORITHMS[algo.name].critic and steps > 1
