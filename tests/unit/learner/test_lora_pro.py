"""LoRA-Pro against its defining properties, by least squares in float64, and against Adam on a whole weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpost.learner.lora_pro import LoraPro, adjusted, equivalent

SCALING = 1.7


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _layer(out: int, rank: int, inputs: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and a gradient of the weight."""
    A, B, G = (
        _random(rank, inputs, seed=seed),
        _random(out, rank, seed=seed + 1),
        _random(out, inputs, seed=seed + 2),
    )
    return A, B, G


def _lora_gradients(A: Tensor, B: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """By autograd, of a loss whose gradient by the weight is G."""
    leaves = A.clone().requires_grad_(), B.clone().requires_grad_()
    (SCALING * (leaves[1] @ leaves[0]) * G).sum().backward()
    assert leaves[0].grad is not None
    assert leaves[1].grad is not None
    return leaves[0].grad, leaves[1].grad


def _tangents(A: Tensor, B: Tensor) -> Tensor:
    """The linear map from (dA, dB), flat, to the change of the weight, flat: a column for each of their numbers."""
    columns = []
    for numbers in torch.eye(A.numel() + B.numel(), dtype=torch.float64):
        dA, dB = numbers[: A.numel()].view_as(A), numbers[A.numel() :].view_as(B)
        columns.append((SCALING * (B @ dA + dB @ A)).flatten())
    return torch.stack(columns, dim=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_the_equivalent_is_the_nearest_to_the_whole_gradient(
    out: int, inputs: int, rank: int, seed: int
) -> None:
    A, B, G = _layer(out, min(rank, out, inputs), inputs, seed)
    map_ = _tangents(A, B)
    nearest = map_ @ torch.linalg.lstsq(map_, G.flatten(), driver="gelsd").solution
    found = equivalent(A, B, *adjusted(A, B, *_lora_gradients(A, B, G), SCALING), SCALING)
    torch.testing.assert_close(found, nearest.view_as(G), rtol=1e-3, atol=1e-4)


def test_of_all_steps_with_that_equivalent_it_is_nearest_to_the_gradients() -> None:
    """Equivalents do not change along (X A, -B X), so the difference to the gradients is at right angles to these."""
    A, B, G = _layer(6, 3, 5, seed=4)
    gradients = _lora_gradients(A, B, G)
    steps = adjusted(A, B, *gradients, SCALING)
    difference = torch.cat([(step - g).flatten() for step, g in zip(steps, gradients, strict=True)])
    for X in torch.eye(9, dtype=torch.float64).view(9, 3, 3):
        free = torch.cat([(X @ A).flatten(), (-B @ X).flatten()])
        assert difference @ free == pytest.approx(0.0, abs=1e-9)


def test_at_the_start_where_b_is_zero_only_b_moves() -> None:
    A, _, G = _layer(6, 2, 5, seed=1)
    B = torch.zeros(6, 2, dtype=torch.float64)
    step_A, step_B = adjusted(A, B, *_lora_gradients(A, B, G), SCALING)
    assert torch.equal(step_A, torch.zeros_like(A))
    onto_rows = A.T @ torch.linalg.inv(A @ A.T) @ A
    torch.testing.assert_close(equivalent(A, B, step_A, step_B, SCALING), G @ onto_rows)


def test_a_full_rank_pair_takes_adams_own_steps() -> None:
    """With as many ranks as columns any change of the weight is within reach, so the equivalent of a step is Adam's on
    the whole weight, which torch computes."""
    torch.manual_seed(0)
    A, B = (torch.nn.Parameter(t) for t in (_random(4, 4, seed=7), _random(6, 4, seed=8)))
    weight = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    rate = 1e-6  # so small that the second order does not count
    ours = LoraPro([{"params": [A, B], "scalings": [SCALING]}], (0.9, 0.95), 0.0)
    ours.param_groups[0]["lr"] = rate
    adam = torch.optim.AdamW([weight], lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    start = SCALING * (B @ A).detach()
    for step in range(3):
        G = _random(6, 4, seed=20 + step)
        A.grad, B.grad = _lora_gradients(A.detach(), B.detach(), G)
        weight.grad = G
        ours.step()
        adam.step()
    torch.testing.assert_close(SCALING * (B @ A).detach() - start, weight.detach(), rtol=1e-4, atol=1e-10)


def test_weight_decay_is_decoupled() -> None:
    A, B, G = _layer(4, 2, 3, seed=3)

    def stepped(weight_decay: float) -> list[Tensor]:
        pair = [torch.nn.Parameter(A.clone()), torch.nn.Parameter(B.clone())]
        pair[0].grad, pair[1].grad = _lora_gradients(A, B, G)
        optimizer = LoraPro([{"params": pair, "scalings": [SCALING]}], (0.9, 0.95), weight_decay)
        optimizer.param_groups[0]["lr"] = 0.1
        optimizer.step()
        return [p.detach() for p in pair]

    for before, plain, decayed in zip((A, B), stepped(0.0), stepped(0.5), strict=True):
        torch.testing.assert_close(plain - decayed, 0.1 * 0.5 * before)
