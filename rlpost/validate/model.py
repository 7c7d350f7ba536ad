"""Refuses a model that the run cannot use, and settings that do not fit it.

The checks need the model's files, so they run after `checks`, but before Ray starts, so that nobody waits for engines
that fail at their first swap. Each file's header is read once.
"""

from __future__ import annotations

from pathlib import Path

from rlpost.config import learning_rates
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.keys import refusal
from rlpost.config.schema import BaseKind, Config, LearningRate, Task
from rlpost.errors import ConfigError, ModelError
from rlpost.validate.environment import TRAINING
from rlpost.validate.given_adapter import check_given_adapter
from rlpost.validate.optimizer import check_muon
from rlpost.validate.parallel import check_tensor_parallel
from rlpost.validate.target_modules import Shapes, check_target_modules, check_whole_parameters, wanted
from rlpost.validate.teacher_fit import check_teacher
from rlpost.weights import models
from rlpost.weights.base_weights import base_weights
from rlpost.weights.experts import expert_blocks
from rlpost.weights.kind_settings import check_settings_of_kind
from rlpost.weights.parameters import parameters_of
from rlpost.weights.stored_model import StoredModel

_UNQUANTIZED = "in float32, bfloat16 or float16"


def check_model(cfg: Config, model_folder: Path) -> None:
    """Check the model, the adapter and the teacher, for every task that has a model.

    Raises:
        ConfigError: lora.target_modules names modules that the model does not have or that lora.kind cannot train,
            lora.settings names settings that the kind does not have, lora.rank is too large for lora.start,
            learner.optimizer=muon has no matrix to update, lora.base=nf4 would round what is quantized already,
            lora.learning_rate=auto has no rule for the model or the kind, rollout.tensor_parallel does not divide
            the model's layers, or algo.teacher cannot be read beside the model.
        AdapterError: the adapter (or the teacher's) is damaged, unsupported, of another model or not mergeable; the
            adapter differs from lora.*; or lora.* cannot be merged on this model.
        ModelError: the files of the model or the teacher cannot be read, a head scales the logits, or the model is
            quantized and would be trained or swapped.
    """
    check_tensor_parallel(cfg, model_folder)
    model, whole = StoredModel.read(model_folder), None
    _check_quantization(cfg, model)
    if cfg.task is not Task.eval:
        if scaled := models.scaled_logits(model.text_config):
            raise ModelError(f"model={cfg.model}: {scaled}")
        trained = _check_trained(cfg, model_folder, model)
        whole = trained if TABLE[cfg.lora.kind].whole else None
        if cfg.task in TRAINING:
            check_muon(cfg, trained)
    if cfg.task in TRAINING and cfg.lora.learning_rate is LearningRate.auto:
        learning_rates.advised(cfg, *models.family_and_width(model_folder))
    check_teacher(cfg, model_folder, model)
    if cfg.adapter is not None:
        check_given_adapter(cfg, model_folder, model, whole)


def _check_quantization(cfg: Config, model: StoredModel) -> None:
    """Refuse a checkpoint in codes wherever its weights would be rounded again, trained on or written.

    vLLM alone knows what the codes mean, so the bare model can be evaluated.
    """
    method, coded = model.quantization, model.coded_layers
    if cfg.lora.base is BaseKind.nf4 and (method or coded):
        how = f"quantized already ({method})" if method else f"stored in codes, as {coded[0]} is"
        reason = f"model={cfg.model} is {how}, and its codes cannot be rounded to 4 bits again"
        raise ConfigError(
            refusal("lora.base", "nf4", reason, f"give the model that it was made from, {_UNQUANTIZED}")
        )
    if method and (cfg.task is not Task.eval or cfg.adapter is not None):
        raise ModelError(
            f"model={cfg.model} is quantized ({method}): engines write merged weights, and its layers hold codes. Give"
            f" the model that it was made from, {_UNQUANTIZED}; lora.base=nf4 then holds it in 4 bits. (task=eval"
            " without adapter= evaluates the model as it is.)"
        )


def _check_trained(cfg: Config, folder: Path, model: StoredModel) -> Shapes:
    """The names and shapes of what the run trains (of an adapter's modules that repeat, the first); see check_model."""
    kind = TABLE[cfg.lora.kind]
    check_settings_of_kind(cfg.lora)
    if kind.whole:
        return check_whole_parameters(cfg, parameters_of(folder), model.shapes)
    layers = model.linear_layers
    check_target_modules(cfg, layers, expert_blocks(model.shapes))
    if kind.peft_type == "LORA" and not cfg.lora.settings:
        # Plain LoRA needs no trial, so that PEFT, whose import takes seconds, is not imported.
        rank, targets = cfg.lora.rank, {module: layers[module] for module in wanted(cfg, layers)}
        A = {f"{module}.lora_A.weight": (rank, columns) for module, (_, columns) in targets.items()}
        B = {f"{module}.lora_B.weight": (rows, rank) for module, (rows, _) in targets.items()}
        return {**A, **B}
    from rlpost.weights.trial_merge import try_merge

    return try_merge(cfg.lora, wanted(cfg, layers), base_weights(folder, cfg.lora.base))
