"""The first values of LoRA's A and B, by PEFT's own initialisations.

    examples ─▶ the bare base, one example at a time ─▶ what the start reads of each layer ─┐
                                                       W0 of each layer (float32 copy) ─▶ PEFT ─▶ A0, B0

PEFT subtracts s B0 A0 from the base for starts that change it. Here PEFT gets a copy of each weight, so the base stays
W0 and the roles subtract s B0 A0 themselves (rlpost.learner.model.peft_weights).
Shapes: T tokens, I inputs and O outputs of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraGAConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.corda import CordaEigens, collect_eigens_for_layer
from torch import Tensor, nn

from rlpost.algorithms.roles import POLICY
from rlpost.config.schema import AdapterStart
from rlpost.errors import LearnerError
from rlpost.kernels.linear_logprob import linear_logprob
from rlpost.learner.model.packing import MicroBatch, Row, collate, slot_starts
from rlpost.learner.model.packing_check import hidden_states
from rlpost.learner.model.peft_weights import PeftWeights
from rlpost.learner.model.prefixes import Group
from rlpost.types import Example

Read = dict[LoraLayer, Tensor]  # what a start reads of each layer


def start_adapters(weights: PeftWeights, start: AdapterStart, examples: Sequence[Example], seed: int) -> None:
    """Give every role the first values of `start`. All roles have the same ones.

    The result depends on the arguments only. `weights` must not be sharded or fused yet.

    Raises LearnerError if the start needs examples, or tokens in the loss, and there are none.
    """
    if start is AdapterStart.default:
        return
    read = _READERS[start](weights, examples) if start in _READERS else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in weights.layers:
            with _copied_weight(layer):
                _STARTS[start](layer, read.get(layer))
    weights.share_start()


@contextmanager
def _copied_weight(layer: LoraLayer) -> Iterator[None]:
    """A context in which the base's weight is a float32 copy that PEFT may change."""
    weight = cast(nn.Linear, layer.get_base_layer()).weight
    kept = weight.data
    weight.data = kept.to(torch.float32, copy=True)
    try:
        yield
    finally:
        weight.data = kept


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

    Each backward pass ends with a gradient of the size of the adapted weights.
    """
    answered = [e for e in examples if any(e.loss_mask[1:])]
    if not answered:
        raise LearnerError(
            "lora.start=lora_ga: no example has a token in the loss; give lora.start_examples more"
        )
    linears = {layer: cast(nn.Linear, layer.get_base_layer()) for layer in weights.layers}
    gradients: Read = {}
    head = weights.base.get_output_embeddings().weight
    for linear in linears.values():
        linear.weight.requires_grad_(True)
    with weights.using(None), torch.enable_grad():
        for batch in _batches(answered):
            hidden_NH = hidden_states(weights.base.base_model, batch)
            logprobs_N, _ = linear_logprob(hidden_NH, head, batch.targets_N, 1.0)
            (-logprobs_N.mean() / len(answered)).backward()
            for layer, linear in linears.items():
                assert linear.weight.grad is not None
                gradients[layer] = gradients.get(layer, 0.0) + linear.weight.grad.float()
                linear.weight.grad = None
    for linear in linears.values():
        linear.weight.requires_grad_(False)
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
    try:
        with weights.using(None):
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
