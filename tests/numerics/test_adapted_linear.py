"""The fused adapter layers against their definition in float64, forward and backward, in odd shapes and dtypes."""

from __future__ import annotations

import pytest
import torch

from rlpost.kernels.adapted_linear import Pair, adapted_linear, adapted_linear_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


def test_by_hand() -> None:
    """Input 2, weights 1 and 10 with bias 0 and 1, an adapter on the second: 21 + 0.5 * 5 * 3 * 2 = 36."""
    x, weight = torch.tensor([[2.0]]), torch.tensor([[1.0], [10.0]])
    pair = Pair(torch.tensor([[3.0]]), torch.tensor([[5.0]]), 0.5, 1)
    assert adapted_linear(x, weight, torch.tensor([0.0, 1.0]), [pair]).tolist() == [[2.0, 36.0]]
    assert adapted_linear(x, weight, None, []).tolist() == [[2.0, 20.0]]


@pytest.mark.parametrize("outputs", [(5,), (7, 3), (33, 1, 8)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_forward_and_backward(outputs: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    """Adapters in float32 or wider, with ranks and scalings of their own; the middle one of three is missing."""
    generator = torch.Generator().manual_seed(len(outputs))

    def some(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)

    wide = torch.promote_types(dtype, torch.float32)
    x, weight, b = some(11, 17), some(sum(outputs), 17), some(sum(outputs)) if bias else None
    adapted = [k for k in range(len(outputs)) if k != 1 or len(outputs) < 3]
    leaves = [x.requires_grad_()]
    for k in adapted:
        leaves += [
            some(k + 2, 17, kind=wide).requires_grad_(),
            some(outputs[k], k + 2, kind=wide).requires_grad_(),
        ]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]

    def pairs(tensors: list[torch.Tensor]) -> list[Pair]:
        places = [(0.7 + k, sum(outputs[:k])) for k in adapted]
        return [Pair(tensors[2 * j + 1], tensors[2 * j + 2], *place) for j, place in enumerate(places)]

    found = adapted_linear(x, weight, b, pairs(leaves))
    expected = adapted_linear_reference(
        exact[0], weight.double(), None if b is None else b.double(), pairs(exact)
    )
    slopes = some(*expected.shape)
    found.backward(slopes)
    expected.backward(slopes.double())
    for mine, theirs in ((found, expected), *((a.grad, e.grad) for a, e in zip(leaves, exact, strict=True))):
        assert mine is not None
        assert theirs is not None
        size = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine.double(), theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * size)
    assert all(leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in leaves)


def test_no_gradient_to_inputs_that_want_none() -> None:
    A, B = torch.ones(2, 3, requires_grad=True), torch.ones(4, 2, requires_grad=True)
    adapted_linear(torch.ones(5, 3), torch.ones(4, 3), None, [Pair(A, B, 1.0, 0)]).sum().backward()
    assert A.grad is not None
    assert A.grad.unique().item() == 5 * 4


@pytest.mark.parametrize("adapted", [True, False])
def test_a_weight_that_is_made_in_each_pass(adapted: bool) -> None:
    """The same outputs and gradients, bit for bit. Each pass makes the weight once, and nothing saves it."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((11, 17), (6, 17)))
    A, B = (torch.randn(shape, generator=generator, requires_grad=True) for shape in ((2, 17), (6, 2)))
    slopes, pairs = torch.randn(11, 6, generator=generator), [Pair(A, B, 0.7, 0)] if adapted else []
    made: list[torch.Tensor] = []

    def make() -> torch.Tensor:
        made.append(weight.clone())
        return made[-1]

    found = []
    for given in (weight, make):
        leaf, saved = x.clone().requires_grad_(), list[torch.Tensor]()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=saved: to.append(t) or t, lambda t: t):
            y = adapted_linear(leaf, given, torch.ones(6), pairs)
        found.append([y, *torch.autograd.grad(y, [leaf, A, B] if adapted else [leaf], slopes)])
    assert len(made) == 2
    assert all(t.data_ptr() != made[0].data_ptr() for t in saved)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
