"""Merges adapters of any kind with PEFT: PEFT builds its layers on the base's linear layers and merges them.

This module knows no kind in particular. It checks the result of every kind in the same way:

    the layers hold the file's tensors, one by one                        so none is ignored and none is missing
    building the layers does not change W0                                so the adapter belongs to this base
    the layer's own forward equals the merged linear layer's, at random   so the adapter does nothing but the merge

Some kinds also change the bias of a layer (IA3 of its output, for instance). Whether this one does is tried once for
each name of a module; such biases are parameters of the update like the weights.

The module tree has only the checkpoint's linear layers, which share the memory-mapped checkpoint; one layer at a time
is widened to fp32. Memory: two copies of the adapter, and one layer.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rlpost.errors import AdapterError
from rlpost.weights.base_weights import BaseWeights
from rlpost.weights.models import linear_layers

_NAME = "default"  # PEFT's name for a model's only adapter
# Random inputs on which a layer's forward is compared with its merged weight.
_QUESTIONS = 4
_TOLERANCE = 1e-4  # relative to the largest output: two orders of summation in fp32
_SHOWN = 3  # names shown in a message


class PeftLayers:
    """PEFT's layers with an adapter's tensors, on the linear layers of a checkpoint."""

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        base: BaseWeights,
        modules: Container[str] | None = None,
    ):
        """`config` as in adapter_config.json, `tensors` by PEFT's saved names, on `modules` or all linear layers.

        Raises:
            AdapterError: PEFT cannot build the layers there, they do not hold `tensors`, or they change the base.
        """
        self._kind = str(config["peft_type"])
        self._dice = torch.Generator().manual_seed(0)
        own = base.again()  # in case PEFT writes into a weight
        try:
            model = _build(config, tensors, own, modules)
        except Exception as error:  # PEFT's kinds raise anything, from KeyError to ImportError
            raise AdapterError(
                f"PEFT cannot put this adapter of kind {self._kind} on the model's linear layers: {_line(error)}."
                " Is it of another model, or does it adapt embeddings, the head or norms? Adapters are taken on linear"
                " layers alone."
            ) from error
        self._check_tensors(tensors, get_peft_model_state_dict(model, save_embedding_layers=False))
        self._layers: dict[str, Any] = {
            name: layer
            for name, layer in model.get_base_model().named_modules()
            if isinstance(layer, BaseTunerLayer) and f"{name}.weight" in base
        }
        if not self._layers:
            raise AdapterError(f"This adapter of kind {self._kind} adapts none of the model's linear layers.")
        changed = [
            name
            for name, layer in self._layers.items()
            if not torch.equal(layer.get_base_layer().weight, base[f"{name}.weight"])
        ]
        if changed:
            raise AdapterError(
                f"PEFT's start of this adapter of kind {self._kind} changes the base in {len(changed)} modules"
                f" ({_some(changed)}), so the adapter belongs to that base and not to the model's own weights. Train it"
                " with a start that leaves the base alone."
            )
        self.shapes = self._shapes()

    def merged(self, parameter: str, base: Tensor, out: Tensor | None = None) -> Tensor:
        """See `rlpost.weights.update.WeightUpdate.merged`.

        Raises:
            AdapterError: no such parameter, or another shape; PEFT cannot merge it; or the merge differs from the
                output of the layer.
        """
        module, _, part = parameter.rpartition(".")
        if base.shape != self.shapes.get(parameter):
            raise AdapterError(
                f"{parameter!r}: the adapter has no value of shape {tuple(base.shape)} for it (its own is"
                f" {self.shapes.get(parameter)})."
            )
        linear = self._layers[module].get_base_layer()
        given = {"weight": linear.weight, "bias": linear.bias, part: base}
        weight, bias = self._merge(module, given["weight"], given["bias"])
        if bias is not None and f"{module}.bias" not in self.shapes and not torch.equal(bias, given["bias"]):
            raise AdapterError(f"Module {module!r}: {self._kind} changes its bias, and not that of its like.")
        merged = bias if part == "bias" and bias is not None else weight
        return merged if out is None else out.copy_(merged)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter that a merge changes: all weights, and the biases of some kinds."""
        shapes: dict[str, tuple[int, ...]] = {}
        moves: dict[str, bool] = {}  # whether a bias changes, by the last name of its module
        for module, layer in self._layers.items():
            linear, name = layer.get_base_layer(), module.rpartition(".")[2]
            shapes[f"{module}.weight"] = tuple(linear.weight.shape)
            if linear.bias is not None:
                if name not in moves:
                    moves[name] = self._moves_bias(module)
                if moves[name]:
                    shapes[f"{module}.bias"] = tuple(linear.bias.shape)
        return shapes

    def _moves_bias(self, module: str) -> bool:
        """Whether a merge changes the module's bias. A random one is tried, since the stored one may be zero."""
        linear = self._layers[module].get_base_layer()
        bias = torch.randn(linear.bias.shape, generator=self._dice)
        merged = self._merge(module, linear.weight, bias)[1]
        return merged is None or not torch.equal(merged, bias)

    @torch.no_grad()
    def _merge(self, module: str, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer's weight [out, in] and bias [out] in fp32 after a merge over the given ones, checked.

        The layer keeps the base's own.
        """
        layer = self._layers[module]
        linear = layer.get_base_layer()
        stored = linear.weight.data, None if linear.bias is None else linear.bias.data
        linear.weight.data = weight.to("cpu", torch.float32, copy=True)
        if bias is not None:
            linear.bias.data = bias.to("cpu", torch.float32, copy=True)
        inputs = torch.randn(_QUESTIONS, weight.shape[1], generator=self._dice)
        try:
            asked = layer(inputs)
            layer.merge(safe_merge=True)
            merged = linear.weight.data, None if bias is None else linear.bias.data
        except Exception as error:  # PEFT may raise anything, see above
            raise AdapterError(
                f"Module {module!r}: PEFT cannot merge an adapter of kind {self._kind} into a linear layer:"
                f" {_line(error)}"
            ) from error
        finally:
            layer.merged_adapters.clear()  # restores the base without PEFT's arithmetic, which would round
            linear.weight.data = stored[0]
            if stored[1] is not None:
                linear.bias.data = stored[1]
        self._check_forward(module, asked, nn.functional.linear(inputs, *merged))
        return merged

    def _check_tensors(self, saved: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
        """Raises AdapterError unless the layers hold exactly the file's tensors."""
        differing = [
            name
            for name in sorted(saved.keys() | held.keys())
            if name not in saved
            or name not in held
            or not torch.equal(saved[name].float(), held[name].detach().cpu().float())
        ]
        if differing:
            raise AdapterError(
                f"PEFT's layers of kind {self._kind} on this model do not hold what the adapter's file has:"
                f" {len(differing)} tensors differ or are on one side alone ({_some(differing)}). Is the adapter of"
                " another model, or saved by another version of PEFT? (Embeddings and the head cannot be adapted.)"
            )

    def _check_forward(self, module: str, asked: Tensor, merged: Tensor) -> None:
        apart = float((asked - merged).abs().max() / merged.abs().max().clamp_min(1e-30))
        if not apart <= _TOLERANCE:
            raise AdapterError(
                f"Module {module!r}: an adapter of kind {self._kind} computes something else than its merged weight"
                f" ({apart:.2g} of the largest output apart on random inputs; {_TOLERANCE} is rounding). Only adapters"
                " whose merge is all that they do can be served."
            )


def _build(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base: BaseWeights,
    modules: Container[str] | None,
) -> PeftModel:
    """PEFT's model over the linear layers. The process's random state stays as it was."""
    # A task type would require methods of a language model; without it PEFT's layers are the same.
    settings = {**config, "task_type": None, "inference_mode": True}
    with torch.random.fork_rng(devices=[]):
        model = PeftModel(linear_tree(base, modules), PeftConfig.from_peft_type(**settings), _NAME)
        set_peft_model_state_dict(model, dict(tensors), _NAME)
    return model.eval()


def linear_tree(base: BaseWeights, modules: Container[str] | None = None) -> nn.Module:
    """A module tree of the checkpoint's linear layers (or of those in `modules`) under their own names.

    It cannot be run as a whole.
    """
    root = nn.Module()
    for name, (rows, columns) in linear_layers(base.folder).items():
        if modules is not None and name not in modules:
            continue
        *path, leaf = name.split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        has_bias = f"{name}.bias" in base
        layer = nn.Linear(columns, rows, bias=has_bias, device="meta")
        layer.weight = nn.Parameter(base[f"{name}.weight"], requires_grad=False)
        if has_bias:
            layer.bias = nn.Parameter(base[f"{name}.bias"].float(), requires_grad=False)
        parent.add_module(leaf, layer)
    return root


def _line(error: Exception) -> str:
    """The error as one line of bounded length, because PEFT lists every parameter with a wrong shape."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300].rstrip(".")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
