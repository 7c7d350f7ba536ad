"""QLoRA's base (arXiv 2305.14314): the decoder's linear layers in NF4, under adapters that PEFT puts on them.

    Nf4Weights (rlpost/weights/base_weights.py) ─▶ codes ─▶ Nf4Linear in place of nn.Linear
    forward: W = dequantize(codes), x W'           backward: W again, dL/dx = dL/dy W; no gradient for W, no copy of W

Embeddings, head and norms stay as they are. The codes come from the stored checkpoint and not from the loaded model,
whose weights may have been rounded to another precision: the engines make theirs in the same way.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlpost.config.schema import BaseKind
from rlpost.errors import ModelError
from rlpost.kernels import nf4
from rlpost.kernels.adapted_linear import frozen_linear
from rlpost.weights.base_weights import Nf4Weights


class Nf4Linear(nn.Linear):
    """A frozen linear layer, (..., in) to (..., out), whose weight is held in NF4.

    To PEFT it is an `nn.Linear`: `weight` is its weight in the model's dtype, made anew whenever it is asked for. What
    is written into that tensor is lost, so adapters cannot be merged here (the learner does not merge).
    """

    def __init__(self, quantized: nf4.Quantized, bias_O: nn.Parameter | None, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.out_features, self.in_features = quantized.shape
        self.dtype = dtype
        # Buffers move with the model. They are not in its state, since checkpoints hold what is trained.
        for name in ("codes", "magnitudes", "scales", "mean"):
            self.register_buffer(name, getattr(quantized, name), persistent=False)
        self.register_parameter("bias", bias_O)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.dequantized(self.dtype)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in), rounded to `dtype`."""
        codes, magnitudes, scales, mean = (
            self.get_buffer(name) for name in ("codes", "magnitudes", "scales", "mean")
        )
        shape = (self.out_features, self.in_features)
        return nf4.dequantize(nf4.Quantized(codes, magnitudes, scales, mean, shape), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear, under autocast too, which does not reach into an autograd function."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        bias_O = None if self.bias is None else self.bias.to(dtype)
        return frozen_linear(x.to(dtype), lambda: self.dequantized(self.dtype).to(dtype), bias_O)


def with_base(model: PreTrainedModel, kind: BaseKind, folder: Path) -> PreTrainedModel:
    """`model`, loaded from `folder`, with the linear layers that `kind` (`lora.base`) says; changed in place.

    Raises ModelError if a linear layer of the checkpoint is something else in the model.
    """
    if kind is BaseKind.stored:
        return model
    weights, dtype = Nf4Weights(folder), next(model.parameters()).dtype
    layers = {name: _linear(model, name) for name in weights.changed}
    if unknown := [name for name, layer in layers.items() if layer is None]:
        raise ModelError(
            f"model {folder.name}: lora.base={kind.value} quantizes the checkpoint's linear layers, and {len(unknown)}"
            f" of {len(layers)} are no plain linear layers in the model, first {unknown[0]}. Give lora.base=stored, or"
            " another model."
        )
    for name, layer in layers.items():
        assert layer is not None
        model.set_submodule(name, Nf4Linear(weights.codes(name), layer.bias, dtype))
    return model


def _linear(model: PreTrainedModel, name: str) -> nn.Linear | None:
    """The plain linear layer of that name, if there is one."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return None
    return layer if type(layer) is nn.Linear else None
