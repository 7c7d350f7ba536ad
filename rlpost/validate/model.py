"""Refuses a model that the learner cannot train, and settings that do not fit it: `lora.target_modules` and the
adapter to start from or evaluate.

The checks need the model's files, so they run after `checks`, but before Ray starts, so that nobody waits for engines
that fail at their first swap. They compare names and shapes of parameters, and test whether the adapter can be merged
at all. The adapter's own `base_model_name_or_path` is only shown, since folders get renamed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from rlpost.config import learning_rates
from rlpost.config.adapter_kinds import TABLE
from rlpost.config.adapter_starts import STARTS
from rlpost.config.keys import refusal
from rlpost.config.schema import Config, LearningRate, LoraConfig, Task
from rlpost.errors import AdapterError, ConfigError, ModelError
from rlpost.validate.environment import TRAINING
from rlpost.validate.fit import base_of, check_fit, some
from rlpost.validate.parallel import check_tensor_parallel
from rlpost.validate.teacher_fit import check_teacher
from rlpost.weights import models
from rlpost.weights.adapter_settings import named
from rlpost.weights.adapters import Adapter
from rlpost.weights.base_weights import base_weights
from rlpost.weights.experts import expert_blocks, in_experts
from rlpost.weights.kind_settings import check_settings_of_kind, check_start, trains_parameter
from rlpost.weights.update import WeightUpdate, check_merges, weight_update

ALL = "all-linear"

Layers = Mapping[str, tuple[int, int]]  # as in models.linear_layers


def check_model(cfg: Config, model_folder: Path) -> None:
    """Check the model, the adapter and the teacher, for every task that has a model.

    Raises:
        ConfigError: lora.target_modules names modules that the model does not have or that lora.kind cannot train,
            lora.settings names settings that the kind does not have, lora.rank is too large for lora.start,
            lora.learning_rate=auto has no rule for the model or the kind, rollout.tensor_parallel does not divide
            the model's layers, or algo.teacher cannot be read beside the model.
        AdapterError: the adapter (or the teacher's) is damaged, unsupported, of another model or not mergeable; the
            adapter differs from lora.*; or lora.* cannot be merged on this model.
        ModelError: the files of the model or the teacher cannot be read, or a head scales the logits.
    """
    trains, kind = cfg.task in TRAINING, TABLE[cfg.lora.kind]
    plain = kind.peft_type == "LORA" and not cfg.lora.settings
    check_tensor_parallel(cfg, model_folder)
    layers = models.linear_layers(model_folder)
    blocks = expert_blocks(models.parameter_shapes(model_folder))
    if cfg.task is not Task.eval:
        if scaled := models.scaled_logits(models.text_config(model_folder)):
            raise ModelError(f"model={cfg.model}: {scaled}")
        if kind.whole:
            _check_parameters(cfg, model_folder)
        else:
            _check_experts(cfg, layers, blocks)
            _check_targets(cfg, layers)
            _check_directions(cfg, layers, STARTS[cfg.lora.start].directions * cfg.lora.rank)
    if trains and cfg.lora.learning_rate is LearningRate.auto:
        learning_rates.advised(cfg, *models.family_and_width(model_folder))
    if cfg.task is not Task.eval and not plain:
        _check_kind(cfg, model_folder)
    check_teacher(cfg, model_folder)
    if cfg.adapter is None:
        return
    adapter = Adapter.load(Path(cfg.adapter))
    if trains:
        check_start(adapter.config, cfg.lora)
    try:
        update = weight_update(adapter, base_weights(model_folder, cfg.lora.base))
    except AdapterError as error:
        raise AdapterError(
            f"adapter={cfg.adapter} (trained on {base_of(adapter)}) does not fit model={cfg.model}. {error}"
        ) from error
    check_fit(f"adapter={cfg.adapter}", adapter, update.shapes, cfg.model, model_folder)
    _check_adapted_experts(update, cfg, blocks)
    check_merges(update)
    if trains and kind.whole:
        _check_start_parameters(adapter, cfg, layers)
    elif trains:
        _check_start_modules(update, cfg, layers)


def _check_kind(cfg: Config, model_folder: Path) -> None:
    """Try the kind on the model. Plain LoRA needs no trial, so PEFT, whose import takes seconds, is imported here."""
    check_settings_of_kind(cfg.lora)
    if TABLE[cfg.lora.kind].whole:
        return
    layers = models.linear_layers(model_folder)
    from rlpost.weights.trial_merge import try_merge

    try_merge(cfg.lora, _wanted(cfg, layers), base_weights(model_folder, cfg.lora.base))


def _check_targets(cfg: Config, layers: Layers) -> None:
    """Refuse target names that match no module. PEFT ignores such a name as long as another one matches."""
    reason = f"model={cfg.model} has no linear layer of that name in its blocks"
    _refuse_absent(cfg, layers, reason, "; lora.kind=full trains embeddings, norms and the head too")


def _refuse_absent(cfg: Config, modules: Collection[str], reason: str, more: str = "") -> None:
    """Refuse target names that are none of `modules`, which the remedy offers; `more` ends the remedy."""
    has = ", ".join(sorted({module.rpartition(".")[2] for module in modules}))
    refusals = [
        refusal("lora.target_modules", name, reason, f"give {ALL}, or choose from {has}{more}")
        for name in _targets(cfg)
        if not any(named([name], module) for module in modules)
    ]
    if refusals:
        raise ConfigError("\n".join(refusals))


def _check_experts(cfg: Config, layers: Layers, blocks: Collection[str]) -> None:
    """Refuse targets that reach into a mixture of experts."""
    if not blocks:
        return
    inside = [module for module in layers if in_experts(module, blocks)]
    outside = {_leaf(module) for module in layers} - {_leaf(module) for module in inside}
    wrong = [
        name
        for name in _targets(cfg) or [ALL]
        if name == ALL or any(named([name], module) for module in inside)
    ]
    if wrong:
        raise ConfigError(
            refusal(
                "lora.target_modules",
                ",".join(wrong),
                f"model={cfg.model} is a mixture of experts, and neither experts nor routers can be adapted",
                f"give modules outside of these: lora.target_modules='{','.join(sorted(outside))}'",
            )
        )


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _check_adapted_experts(update: WeightUpdate, cfg: Config, blocks: Collection[str]) -> None:
    inside = [module for module in update.shapes if in_experts(module, blocks)]
    if inside:
        raise AdapterError(
            f"adapter={cfg.adapter} adapts experts or routers of a mixture of experts ({some(inside)}), which engines"
            " do not swap. Train one on the modules outside, such as attention's (lora.target_modules)."
        )


def _check_parameters(cfg: Config, model_folder: Path) -> None:
    """Refuse full fine-tuning and BitFit of parameters that the model does not have."""
    kind, stored = cfg.lora.kind, models.parameter_shapes(model_folder)
    everything, what = LoraConfig(kind=kind), TABLE[kind].trains or "parameter"
    trainable = [name for name in stored if trains_parameter(everything, name)]
    if not trainable:
        raise ConfigError(
            refusal(
                "lora.kind", kind.value, f"model={cfg.model} has no {what}", "give lora.kind=lora or full"
            )
        )
    modules = {name.rpartition(".")[0] for name in trainable}
    reason = f"lora.kind={kind.value}: model={cfg.model} has no {what} in a module of that name"
    _refuse_absent(cfg, modules, reason)


def _check_directions(cfg: Config, layers: Layers, wanted: int) -> None:
    """Refuse if the adapter's start takes more singular directions of a weight than it has."""
    targets = None if cfg.lora.target_modules == ALL else _targets(cfg)
    sizes = {m: min(shape) for m, shape in layers.items() if targets is None or named(targets, m)}
    smallest = min(sizes, key=lambda module: sizes[module])
    if wanted > sizes[smallest]:
        raise ConfigError(
            refusal(
                "lora.rank",
                cfg.lora.rank,
                f"lora.start={cfg.lora.start.value} takes {wanted} directions of each weight, and {smallest} of"
                f" model={cfg.model} is {layers[smallest]}",
                "give a smaller lora.rank, or another lora.start",
            )
        )


def _check_start_modules(update: WeightUpdate, cfg: Config, layers: Layers) -> None:
    """Refuse if training with lora.* would adapt other modules than the start adapter has."""
    wanted = _wanted(cfg, layers)
    its = {name.removesuffix(".weight") for name in update.shapes if name.endswith(".weight")}
    differing = sorted(set(wanted) ^ its)
    if differing:
        targets = ",".join(sorted({module.rpartition(".")[2] for module in its}))
        raise AdapterError(
            f"The start adapter has {len(its)} modules, lora.target_modules={cfg.lora.target_modules} means"
            f" {len(wanted)}: they differ in {some(differing)}. Give those it was trained with:"
            f" lora.target_modules='{targets}'"
        )


def _check_start_parameters(adapter: Adapter, cfg: Config, layers: Layers) -> None:
    """Refuse if training with lora.* would leave out parameters of the start, or train linear layers that it lacks.

    Not every tensor of a checkpoint is a parameter (buffers, tied heads), so the learner refuses other missing ones.
    """
    weights = (f"{module}.weight" for module in layers)
    left_out = [name for name in adapter.tensors if not trains_parameter(cfg.lora, name)]
    lacks = [name for name in weights if trains_parameter(cfg.lora, name) and name not in adapter.tensors]
    if left_out or lacks:
        differing = f"leaves out {some(left_out)}" if left_out else f"also trains {some(lacks)}"
        raise AdapterError(
            f"The start has {len(adapter.tensors)} whole parameters; lora.kind={cfg.lora.kind.value}"
            f" lora.target_modules={cfg.lora.target_modules} {differing}. Give the kind and modules it was trained"
            f" with: lora.target_modules={adapter.config.get('target_modules')}"
        )


def _wanted(cfg: Config, layers: Layers) -> list[str]:
    """The modules that lora.target_modules means."""
    if cfg.lora.target_modules == ALL:
        return list(layers)
    return [module for module in layers if named(_targets(cfg), module)]


def _targets(cfg: Config) -> list[str]:
    names = cfg.lora.target_modules
    return [] if names == ALL else names.split(",")
