"""Refuses `lora.target_modules` (and the size of the adapter there) that the model's modules do not allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rlpost.config.adapter_kinds import TABLE
from rlpost.config.adapter_starts import STARTS
from rlpost.config.keys import refusal
from rlpost.config.schema import Config, LoraConfig
from rlpost.errors import ConfigError, ModelError
from rlpost.weights.adapter_settings import named
from rlpost.weights.experts import in_experts
from rlpost.weights.kind_settings import trains_parameter

ALL = "all-linear"
SHOWN = 3  # names in a message

Layers = Mapping[str, tuple[int, int]]  # as in StoredModel.linear_layers
Shapes = Mapping[str, tuple[int, ...]]


def check_target_modules(cfg: Config, layers: Layers, blocks: Collection[str]) -> None:
    """Raises ConfigError for targets that are no linear layers outside of experts, and a size that they do not have."""
    _check_experts(cfg, layers, blocks)
    reason = f"model={cfg.model} has no linear layer of that name in its blocks"
    _refuse_absent(cfg, layers, reason, "; lora.kind=full trains embeddings, norms and the head too")
    _check_directions(cfg, layers)


def check_whole_parameters(cfg: Config, parameters: Shapes, stored: Collection[str]) -> Shapes:
    """The parameters that full fine-tuning or BitFit trains. `stored`: the names in the checkpoint.

    Raises ConfigError if the model has none, or none in a module that is named; ModelError if the checkpoint has some
    under other names.
    """
    kind, everything = cfg.lora.kind, LoraConfig(kind=cfg.lora.kind)
    what = TABLE[kind].trains or "parameter"
    trainable = [name for name in parameters if trains_parameter(everything, name)]
    if not trainable:
        raise ConfigError(
            refusal(
                "lora.kind", kind.value, f"model={cfg.model} has no {what}", "give lora.kind=lora or full"
            )
        )
    modules = {name.rpartition(".")[0] for name in trainable}
    reason = f"lora.kind={kind.value}: model={cfg.model} has no {what} in a module of that name"
    _refuse_absent(cfg, modules, reason)
    trained = {name: shape for name, shape in parameters.items() if trains_parameter(cfg.lora, name)}
    # transformers converts some checkpoints as it loads them: experts become one tensor, prefixes are added.
    if unknown := sorted(set(trained) - set(stored)):
        raise ModelError(
            f"model={cfg.model}: {len(unknown)} parameters have other names in its checkpoint ({some(unknown)}), so"
            f" that engines could not take what lora.kind={kind.value} trains; choose another model, or train an"
            " adapter (lora.kind=lora)"
        )
    return trained


def wanted(cfg: Config, layers: Layers) -> list[str]:
    """The linear layers that lora.target_modules means."""
    if cfg.lora.target_modules == ALL:
        return list(layers)
    return [module for module in layers if named(_targets(cfg), module)]


def some(found: list[str]) -> str:
    """A few of the names, for a message."""
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + more


def _refuse_absent(cfg: Config, modules: Collection[str], reason: str, more: str = "") -> None:
    """Refuse target names that are none of `modules`, which the remedy offers; `more` ends the remedy.

    PEFT ignores such a name as long as another one matches.
    """
    has = ", ".join(sorted({_leaf(module) for module in modules}))
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


def _check_directions(cfg: Config, layers: Layers) -> None:
    """Refuse if the adapter's start takes more singular directions of a weight than it has."""
    directions = STARTS[cfg.lora.start].directions * cfg.lora.rank
    sizes = {module: min(layers[module]) for module in wanted(cfg, layers)}
    smallest = min(sizes, key=lambda module: sizes[module])
    if directions > sizes[smallest]:
        raise ConfigError(
            refusal(
                "lora.rank",
                cfg.lora.rank,
                f"lora.start={cfg.lora.start.value} takes {directions} directions of each weight, and {smallest} of"
                f" model={cfg.model} is {layers[smallest]}",
                "give a smaller lora.rank, or another lora.start",
            )
        )


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _targets(cfg: Config) -> list[str]:
    names = cfg.lora.target_modules
    return [] if names == ALL else names.split(",")
