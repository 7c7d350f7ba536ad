"""The first values of LoRA's A and B, by PEFT's own initialisations.

    examples ─▶ the bare base, one example at a time ─▶ what the start reads of each layer ─┐
                                                       W0 of each layer (float32 copy) ─▶ PEFT ─▶ A0, B0

PEFT subtracts s B0 A0 from the base for starts that change it. Here PEFT gets a copy of each weight, so the base stays
W0 and the roles subtract s B0 A0 themselves (rlpost.learner.model.peft_weights). With lora.base=nf4, W0 is the rounded
weight, for all starts but LoftQ, which reads the stored one too.
Shapes: T tokens, I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraGAConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import CordaEigens, collect_eigens_for_layer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import AdapterStart
from rlpost.errors import LearnerError
from rlpost.kernels.linear_logprob import linear_logprob
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.packing_check import hidden_states
from rlpost.learner.model.peft_weights import PeftWeights
from rlpost.learner.model.prefixes import Group
from rlpost.learner.model.quantized_base import Nf4Linear
from rlpost.types import Example
from rlpost.weights.base_weights import BaseWeights

Read = dict[LoraLayer, Tensor]  # what a start reads of each layer


def start_adapters(
    weights: PeftWeights, start: AdapterStart, examples: Sequence[Example], folder: Path, seed: int
) -> None:
    """Give every role the first values of `start`. All roles have the same ones.

    `folder` has the checkpoint, whose weights LoftQ reads. The result depends on the arguments only. `weights` must not
    be sharded or fused yet.

    Raises LearnerError if the start needs examples, or tokens in the loss, and there are none.
    """
    if start is AdapterStart.default:
        return
    if start is AdapterStart.loftq:
        _loftq(weights, BaseWeights(folder))
    else:
        _by_peft(weights, start, examples, seed)
    weights.share_start()


def _by_peft(weights: PeftWeights, start: AdapterStart, examples: Sequence[Example], seed: int) -> None:
    read = _READERS[start](weights, examples) if start in _READERS else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in weights.layers:
            with _copied_weight(layer):
                _STARTS[start](layer, read.get(layer))


@contextmanager
def _copied_weight(layer: LoraLayer) -> Iterator[None]:
    """A context in which the base layer is a plain one with a float32 copy of the weight, which PEFT may change."""
    kept = cast(nn.Linear, layer.get_base_layer())
    copied = nn.Linear(kept.in_features, kept.out_features, bias=False, device="meta")
    copied.weight = nn.Parameter(kept.weight.detach().to(torch.float32, copy=True), requires_grad=False)
    layer.base_layer = copied
    try:
        yield
    finally:
        layer.base_layer = kept


@torch.no_grad()
def _loftq(weights: PeftWeights, stored: Mapping[str, Tensor]) -> None:
    """s B A: the nearest matrix of rank r to what NF4 rounded away (arXiv 2310.08659, algorithm 1 with one step).

    PEFT's own (`loftq_iter=1`) quantizes by bitsandbytes, and does not divide by s.
    """
    for name, layer in weights.base.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        rounded_OI = cast(Nf4Linear, layer.get_base_layer()).dequantized(torch.float32)
        lost_OI = stored[f"{name}.weight"].to(rounded_OI) - rounded_OI
        U_OK, S_K, Vh_KI = torch.linalg.svd(lost_OI, full_matrices=False)
        r = layer.r[POLICY]
        half_r = (S_K[:r] / layer.scaling[POLICY]).sqrt()
        layer.lora_A[POLICY].weight.data = half_r[:, None] * Vh_KI[:r]
        layer.lora_B[POLICY].weight.data = U_OK[:, :r] * half_r


def _gaussian(layer: LoraLayer, read: Tensor | None) -> None:
    layer.reset_lora_parameters(POLICY, "gaussian")


def _orthogonal(layer: LoraLayer, read: Tensor | None) -> None:
    layer.orthogonal_init(POLICY)


def _pissa(layer: LoraLayer, read: Tensor | None) -> None:
    layer.pissa_init(POLICY, "pissa")


def _olora(layer: LoraLayer, read: Tensor | None) -> None:
    layer.olora_init(POLICY)


def _eva(layer: LoraLayer, covariance_II: Tensor | None) -> None:
    """A: the r principal directions of the inputs (arXiv 2410.07170); B is zero.

    PEFT finds them by a randomised incremental decomposition that repeats the data until it converges, which may never
    happen. The covariance gives them in one pass. Ranks stay uniform (PEFT's rho = 1).
    """
    assert covariance_II is not None
    directions_II = torch.linalg.eigh(covariance_II).eigenvectors.flip(1)
    layer.lora_A[POLICY].weight.data = directions_II[:, : layer.r[POLICY]].T.float().contiguous()


def _corda(layer: LoraLayer, covariance_II: Tensor | None) -> None:
    """PEFT's instruction-previewed mode (arXiv 2406.05223): the largest singular directions of W0 C."""
    linear, r = cast(Any, layer.get_base_layer()), layer.r[POLICY]
    linear.covariance_matrix = covariance_II
    found = collect_eigens_for_layer(linear, None)
    del linear.covariance_matrix
    linear.eigens = CordaEigens(found.S_WC[:r].clone(), found.U_WC[:, :r], found.V_WC[:, :r])
    layer.corda_init(POLICY, "corda")


def _lora_ga(layer: LoraLayer, gradient_OI: Tensor | None) -> None:
    cast(Any, layer.get_base_layer())._peft_loraga_grad = gradient_OI
    layer.lora_ga_init(POLICY, LoraGAConfig())


_STARTS: dict[AdapterStart, Callable[[LoraLayer, Tensor | None], None]] = {
    AdapterStart.gaussian: _gaussian,
    AdapterStart.orthogonal: _orthogonal,
    AdapterStart.pissa: _pissa,
    AdapterStart.olora: _olora,
    AdapterStart.eva: _eva,
    AdapterStart.corda: _corda,
    AdapterStart.lora_ga: _lora_ga,
}


def _covariances(weights: PeftWeights, examples: Sequence[Example]) -> Read:
    """The covariance (I, I) of each layer's inputs over all tokens, up to a factor, in float64."""
    squares: Read = {}
    sums: Read = {}
    tokens = 0

    def add(layer: LoraLayer, x_TI: Tensor) -> None:
        x_TI = x_TI.double()
        squares[layer] = squares.get(layer, 0.0) + x_TI.T @ x_TI
        sums[layer] = sums.get(layer, 0.0) + x_TI.sum(0)

    with torch.no_grad(), _inputs_to(weights, add):
        for batch in _batches(examples):
            hidden_states(weights.base.base_model, batch)
            tokens += len(batch.input_ids_T)
    return {layer: square - sums[layer].outer(sums[layer]) / tokens for layer, square in squares.items()}


def _scaled_squares(weights: PeftWeights, examples: Sequence[Example]) -> Read:
    """The matrix (I, I) that PEFT's CorDA calls covariance: the mean of x' x over examples, each x by its maximum."""
    squares: Read = {}

    def add(layer: LoraLayer, x_TI: Tensor) -> None:
        x_TI = x_TI.float() / x_TI.float().max().abs()
        squares[layer] = squares.get(layer, 0.0) + x_TI.T @ x_TI

    with torch.no_grad(), _inputs_to(weights, add):
        for batch in _batches(examples):
            hidden_states(weights.base.base_model, batch)
    return {layer: square / len(examples) for layer, square in squares.items()}


def _gradients(weights: PeftWeights, examples: Sequence[Example]) -> Read:
    """The gradient (O, I) in each W0 of the mean loss over the examples with an answer, each a mean over its tokens.

    It is the sum of dy' x over tokens, so that a base in 4 bits has one too.
    """
    answered = [e for e in examples if any(e.loss_mask[1:])]
    if not answered:
        raise LearnerError(
            "lora.start=lora_ga: no example has a token in the loss; give lora.start_examples more"
        )
    gradients: Read = {}

    def hook(layer: LoraLayer) -> Callable[..., None]:
        def add(x: Tensor, dy: Tensor) -> None:
            dy_TO, x_TI = dy.flatten(0, -2).float(), x.flatten(0, -2).float()
            gradients[layer] = gradients.get(layer, 0.0) + dy_TO.T @ x_TI

        def after(linear: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
            y.register_hook(partial(add, inputs[0].detach()))

        return after

    base = weights.base
    handles = [layer.get_base_layer().register_forward_hook(hook(layer)) for layer in weights.layers]
    # No parameter of the base has a gradient, so the first layer's input must have one.
    handles.append(base.get_input_embeddings().register_forward_hook(lambda *call: call[-1].requires_grad_()))
    with _removed(handles), weights.using(None), torch.enable_grad():
        for batch in _batches(answered):
            hidden_NH = hidden_states(base.base_model, batch)
            logprobs_N, _ = linear_logprob(
                hidden_NH, base.get_output_embeddings().weight, batch.targets_N, 1.0
            )
            (-logprobs_N.mean() / len(answered)).backward()
    return gradients


_READERS: dict[AdapterStart, Callable[[PeftWeights, Sequence[Example]], Read]] = {
    AdapterStart.eva: _covariances,
    AdapterStart.corda: _scaled_squares,
    AdapterStart.lora_ga: _gradients,
}


@contextmanager
def _inputs_to(weights: PeftWeights, add: Callable[[LoraLayer, Tensor], None]) -> Iterator[None]:
    """A context in which the bare base runs, and `add` gets the inputs (T, I) of each adapted layer."""

    def hook(layer: LoraLayer) -> Callable[..., None]:
        return lambda linear, inputs: add(layer, inputs[0].flatten(0, -2))

    handles = [layer.get_base_layer().register_forward_pre_hook(hook(layer)) for layer in weights.layers]
    with _removed(handles), weights.using(None):
        yield


@contextmanager
def _removed(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """A context at whose end the hooks are removed."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batches(examples: Sequence[Example]) -> Iterator[MicroBatch]:
    """One example after another. Raises LearnerError if there is none."""
    if not examples:
        raise LearnerError("the start of the adapter has no examples to read")
    for example in examples:
        row = Row(example.token_ids, example.loss_mask)
        yield collate([row], slot_starts([row]), [Group(0, (0,))])
