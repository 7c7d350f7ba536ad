"""Refuses `adapter=FOLDER` that does not fit the model, or that training with lora.* would not go on with.

It compares names and shapes of parameters, and tests whether the adapter can be merged at all. The adapter's own
`base_model_name_or_path` is only shown, since folders get renamed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rlpost.config.schema import Config
from rlpost.errors import AdapterError
from rlpost.validate.environment import TRAINING
from rlpost.validate.fit import fitting_update
from rlpost.validate.target_modules import Layers, Shapes, some, wanted
from rlpost.weights.adapters import Adapter
from rlpost.weights.experts import expert_blocks, in_experts
from rlpost.weights.kind_settings import check_start
from rlpost.weights.stored_model import StoredModel
from rlpost.weights.update import WeightUpdate, check_merges


def check_given_adapter(cfg: Config, folder: Path, model: StoredModel, whole: Shapes | None) -> None:
    """`folder` and `model`: the model's. `whole`: the whole parameters that the run trains; None: an adapter, or none.

    Raises AdapterError if the adapter is damaged, unsupported, of another model, not mergeable, or differs from lora.*.
    """
    assert cfg.adapter is not None
    adapter = Adapter.load(Path(cfg.adapter))
    if cfg.task in TRAINING:
        check_start(adapter.config, cfg.lora)
    update = fitting_update(cfg, f"adapter={cfg.adapter}", adapter, folder, model)
    _check_experts(update, cfg, expert_blocks(model.shapes))
    check_merges(update)
    if cfg.task in TRAINING and whole is not None:
        _check_start_parameters(adapter, cfg, whole)
    elif cfg.task in TRAINING:
        _check_start_modules(update, cfg, model.linear_layers)


def _check_experts(update: WeightUpdate, cfg: Config, blocks: Collection[str]) -> None:
    inside = [module for module in update.shapes if in_experts(module, blocks)]
    if inside:
        raise AdapterError(
            f"adapter={cfg.adapter} adapts experts or routers of a mixture of experts ({some(inside)}), which engines"
            " do not swap. Train one on the modules outside, such as attention's (lora.target_modules)."
        )


def _check_start_modules(update: WeightUpdate, cfg: Config, layers: Layers) -> None:
    """Refuse if training with lora.* would adapt other modules than the start adapter has."""
    targets = wanted(cfg, layers)
    its = {name.removesuffix(".weight") for name in update.shapes if name.endswith(".weight")}
    differing = sorted(set(targets) ^ its)
    if differing:
        remedy = ",".join(sorted({module.rpartition(".")[2] for module in its}))
        raise AdapterError(
            f"The start adapter has {len(its)} modules, lora.target_modules={cfg.lora.target_modules} means"
            f" {len(targets)}: they differ in {some(differing)}. Give those it was trained with:"
            f" lora.target_modules='{remedy}'"
        )


def _check_start_parameters(adapter: Adapter, cfg: Config, trained: Shapes) -> None:
    """Refuse if training with lora.* would leave out parameters of the start, or train others."""
    left_out = sorted(set(adapter.tensors) - set(trained))
    lacks = sorted(set(trained) - set(adapter.tensors))
    if left_out or lacks:
        differing = f"leaves out {some(left_out)}" if left_out else f"also trains {some(lacks)}"
        raise AdapterError(
            f"The start has {len(adapter.tensors)} whole parameters; lora.kind={cfg.lora.kind.value}"
            f" lora.target_modules={cfg.lora.target_modules} {differing}. Give the kind and modules it was trained"
            f" with: lora.target_modules={adapter.config.get('target_modules')}"
        )
