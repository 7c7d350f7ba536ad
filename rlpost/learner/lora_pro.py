"""LoRA-Pro (arXiv 2407.18242): the steps of A and B whose common effect is nearest to a step of the whole weight.

A LoRA layer computes with W = W0 + s B A. To first order, steps dA and dB change W by s (B dA + dB A): a matrix in the
tangent space of the matrices of that form. LoRA's own gradients, dA = s B^T G and dB = s G A^T for the gradient G of W,
are not the steps that come nearest to G there; `adjusted` gives those.

    gradients of A, B ─▶ adjusted ─▶ equivalent: G's projection ─▶ Adam on it (O, I) ─▶ adjusted ─▶ steps of A, B

Adam's moments have the size of the weight, as in the paper's algorithm 1: the optimizer's memory is that of full
fine-tuning. Shapes: A (r, I), B (O, r).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Directions of A and B whose squared singular value is below this share of the largest count as absent. B starts at 0.
CUTOFF = 1e-6


def equivalent(A_rI: Tensor, B_Or: Tensor, step_A_rI: Tensor, step_B_Or: Tensor, scaling: float) -> Tensor:
    """The change (O, I) of the weight by steps of A and B, to first order."""
    return scaling * (B_Or @ step_A_rI + step_B_Or @ A_rI)


def adjusted(
    A_rI: Tensor, B_Or: Tensor, grad_A_rI: Tensor, grad_B_Or: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """The steps of A and B whose `equivalent` is nearest, in Frobenius norm, to the gradient G of the weight.

    `grad_A` = s B^T G and `grad_B` = s G A^T. Of all steps with that equivalent, these are nearest to the gradients
    themselves (theorems 2.1 and 2.3, with pseudo-inverses, so that B may be 0).
    """
    A, B, grad_A, grad_B = (each.double() for each in (A_rI, B_Or, grad_A_rI, grad_B_Or))
    a_r, U_rr = torch.linalg.eigh(A @ A.T)
    b_r, V_rr = torch.linalg.eigh(B.T @ B)
    inverse_A_rr = U_rr @ (_inverse(a_r)[:, None] * U_rr.T)
    inverse_B_rr = V_rr @ (_inverse(b_r)[:, None] * V_rr.T)
    step_A = inverse_B_rr @ grad_A / scaling**2
    step_B = grad_B @ inverse_A_rr / scaling**2
    step_B = step_B - B @ (inverse_B_rr @ (B.T @ step_B))
    # B^T B X + X A A^T = -step_A A^T, solved in the eigenvectors of the two.
    sums_rr = b_r[:, None] + a_r[None, :]
    X_rr = V_rr @ ((V_rr.T @ (-step_A @ A.T) @ U_rr) * _inverse(sums_rr)) @ U_rr.T
    return (step_A + X_rr @ A).to(A_rI.dtype), (step_B - B @ X_rr).to(B_Or.dtype)


def _inverse(values: Tensor) -> Tensor:
    """1 / value; 0 for values that count as 0."""
    kept = values > CUTOFF * values.max().clamp_min(torch.finfo(values.dtype).tiny)
    return torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)


class LoraPro(torch.optim.Optimizer):
    """AdamW on the equivalent gradients of pairs of A and B.

    A group's `params` are A, B, A, B and so on; its `scalings` has one number a pair.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(groups, {"lr": 1.0, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            pairs = zip(group["params"][::2], group["params"][1::2], group["scalings"], strict=True)
            for A_rI, B_Or, scaling in pairs:
                if A_rI.grad is not None and B_Or.grad is not None:
                    self._step_pair(A_rI, B_Or, scaling, group)

    def _step_pair(self, A_rI: Tensor, B_Or: Tensor, scaling: float, group: dict[str, Any]) -> None:
        assert A_rI.grad is not None
        assert B_Or.grad is not None
        steps = adjusted(A_rI, B_Or, A_rI.grad, B_Or.grad, scaling)
        wanted_OI = self._adam(A_rI, equivalent(A_rI, B_Or, *steps, scaling), group)
        gradients = scaling * (B_Or.T @ wanted_OI), scaling * (wanted_OI @ A_rI.T)
        steps = adjusted(A_rI, B_Or, *gradients, scaling)
        for parameter, step in zip((A_rI, B_Or), steps, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"])

    def _adam(self, A_rI: Tensor, gradient_OI: Tensor, group: dict[str, Any]) -> Tensor:
        """Adam's step for a gradient of the weight, before the learning rate. The pair's state is that of A."""
        state, (beta1, beta2) = self.state[A_rI], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(gradient_OI)
            state["exp_avg_sq"] = torch.zeros_like(gradient_OI)
        state["step"] += 1
        state["exp_avg"].lerp_(gradient_OI, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient_OI, gradient_OI, value=1 - beta2)
        count = state["step"].item()
        mean_OI = state["exp_avg"] / (1 - beta1**count)
        return mean_OI / ((state["exp_avg_sq"] / (1 - beta2**count)).sqrt() + group["eps"])
