"""What an update D does to a weight W0, in terms of singular values and singular vectors.

    factors A, B ─▶ of_factors ─┐
    matrix D ─────▶ of_matrix ──┴▶ Svd ─▶ effective_rank, stable_rank, alignment, leading ─▶ principal_angles, overlap
    W0, W0 + D ───▶ left_vectors ─▶ find_intruders ─▶ Intruders ─▶ scaled_factors
    W0, Svd of D ─▶ left_vectors ─▶ in_principal ─▶ the share of D in W0's leading directions, and that by chance

Shapes: O outputs, I inputs, r the rank of the factors, K singular vectors, N intruders. Computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TOP = 10  # leading singular vectors that are examined: k of arXiv 2410.21228
EPSILON = 0.5  # below this largest |cosine| a vector is an intruder: epsilon of arXiv 2410.21228
_TINY = 1e-7  # singular values below this share of the largest are rounding, if they come from a Gram matrix


@dataclass(frozen=True)
class Svd:
    """D = U diag(S) V^T with the singular values descending and above zero; K is the numerical rank of D."""

    U_OK: Tensor
    S_K: Tensor
    V_IK: Tensor

    def leading(self, count: int) -> Svd:
        """The first `count` singular values with their vectors, or all where the rank is lower."""
        return Svd(self.U_OK[:, :count], self.S_K[:count], self.V_IK[:, :count])


@dataclass(frozen=True)
class Intruders:
    """Singular vectors of W0 + D that W0 does not have: W0 + D has the component U diag(S) V^T."""

    U_ON: Tensor
    S_N: Tensor
    V_IN: Tensor


def of_factors(A_rI: Tensor, B_Or: Tensor, scaling: float) -> Svd:
    """The SVD of scaling * B A: QR of both factors, then the SVD of an (r, r) core."""
    Q_B, R_B = torch.linalg.qr(B_Or.double())
    Q_A, R_A = torch.linalg.qr(A_rI.double().T)
    U, S_K, Vh = torch.linalg.svd(scaling * R_B @ R_A.T, full_matrices=False)
    # Directions of large factors may cancel, as those of an update less itself do, up to the rounding of their product.
    rounding = torch.finfo(S_K.dtype).eps * max(len(B_Or), A_rI.shape[1])
    return _ranked(Q_B @ U, S_K, Q_A @ Vh.T, floor=rounding * abs(scaling) * float(R_B.norm() * R_A.norm()))


def of_matrix(D_OI: Tensor, floor: float = 0.0) -> Svd:
    """The SVD of a full matrix. Singular values up to `floor` count as zero, as do those of rounding."""
    U_OK, S_K, Vh_KI = torch.linalg.svd(D_OI.double(), full_matrices=False)
    return _ranked(U_OK, S_K, Vh_KI.T, floor)


def _ranked(U_OK: Tensor, S_K: Tensor, V_IK: Tensor, floor: float) -> Svd:
    """Without the singular values that are zero up to rounding (the tolerance of numpy's matrix_rank)."""
    eps = torch.finfo(S_K.dtype).eps
    rounding = max(len(U_OK), len(V_IK)) * eps * float(S_K[0]) if len(S_K) else 0.0
    rank = int((max(rounding, floor) < S_K).sum())
    return Svd(U_OK[:, :rank], S_K[:rank], V_IK[:, :rank])


def effective_rank(S_K: Tensor) -> float:
    """exp(entropy of S / sum(S)) (Roy and Vetterli, 2007): the singular values themselves are normalised, not their
    squares. From 1 for one direction to K for K equal ones; 0 for no update."""
    if len(S_K) == 0:
        return 0.0
    shares_K = S_K / S_K.sum()
    return float(torch.special.entr(shares_K).sum().exp())


def stable_rank(S_K: Tensor) -> float:
    """||D||_F^2 / ||D||_2^2, at most the rank; 0 for no update."""
    return float(S_K.square().sum() / S_K[0].square()) if len(S_K) else 0.0


def principal_angles(first_OK: Tensor, second_OK: Tensor) -> Tensor:
    """The angles between two spaces with orthonormal bases of K and J vectors: min(K, J) radians, ascending.

    Björck and Golub (1973). An angle below 1e-8 comes out as about that.
    """
    cosines = torch.linalg.svdvals(first_OK.T @ second_OK)
    return torch.acos(cosines.clamp(max=1.0))


def overlap(first_OK: Tensor, second_OK: Tensor) -> float:
    """Mean squared cosine of the principal angles, from 0 (orthogonal) to 1 (one space holds the other).

    phi of the LoRA paper (arXiv 2106.09685, section 7.2). Random spaces of K and J dimensions in O have max(K, J) / O
    in the mean. 0 if a space is empty.
    """
    smaller = min(first_OK.shape[1], second_OK.shape[1])
    return float((first_OK.T @ second_OK).square().sum()) / smaller if smaller else 0.0


def alignment(first: Svd, second: Svd) -> float:
    """The cosine <D1, D2> / (||D1|| ||D2||) of two updates as vectors; 0 if one is zero."""
    if len(first.S_K) == 0 or len(second.S_K) == 0:
        return 0.0
    left, right = first.U_OK.T @ second.U_OK, first.V_IK.T @ second.V_IK
    inner = (left * right * first.S_K.unsqueeze(1) * second.S_K).sum()
    return float(inner / (first.S_K.norm() * second.S_K.norm()))


def left_vectors(W_OI: Tensor) -> Tensor:
    """The left singular vectors (O, K) of a matrix of rank K, by descending singular value.

    From the eigenvectors of the smaller Gram matrix in float64, which takes about half the time of an SVD in fp32 and
    is as exact. Vectors of singular values that are zero are left out: which ones an SVD gives is arbitrary.
    """
    W = W_OI.double()
    is_wide = W.shape[0] <= W.shape[1]
    squares, vectors = torch.linalg.eigh(W @ W.T if is_wide else W.T @ W)
    S, vectors = squares.flip(0).clamp(min=0.0).sqrt(), vectors.flip(1)
    kept = _TINY * S[0] < S
    left: Tensor = vectors[:, kept] if is_wide else (W @ vectors[:, kept]) / S[kept]
    return left


def find_intruders(base_OK: Tensor, W_OI: Tensor, top: int = TOP, epsilon: float = EPSILON) -> Intruders:
    """Intruder dimensions (arXiv 2410.21228, algorithm 1) of W = W0 + D.

    These are the vectors among the `top` leading left singular vectors of W whose |cosine| to every left singular
    vector of W0 is below `epsilon`.

    Args:
        base_OK: `left_vectors` of W0.
    """
    W = W_OI.double()
    U_OK = left_vectors(W)[:, :top]
    cosines = torch.nn.functional.pad(
        (U_OK.T @ base_OK).abs(), (1, 0)
    )  # a column of zeros, should W0 be zero
    U_ON = U_OK[:, cosines.amax(dim=1) < epsilon]
    projected_IN = W.T @ U_ON  # S V^T = U^T W
    S_N = projected_IN.norm(dim=0)
    return Intruders(U_ON, S_N, projected_IN / S_N)


def in_principal(D: Svd, W0_OI: Tensor, base_OK: Tensor, top: int = TOP) -> tuple[float, float]:
    """The share of ||D||_F^2 in W0's principal directions, and what a random D has in the mean.

    The share is ||U^T D V||_F^2 / ||D||_F^2, where U (O, k) and V (I, k) are the `top` leading left and right singular
    vectors of W0 (k is its rank where that is lower): 1 if D is a combination of u_i v_j^T, 0 if it is orthogonal to
    all of them. These span k^2 of O I dimensions, so the mean of a D with independent entries is k^2 / (O I). The
    question is that of arXiv 2511.08567: whether RL moves the weights off the principal directions.

    Args:
        D: an update with at least one singular value.
        base_OK: `left_vectors` of W0.
    """
    U_Ok = base_OK[:, :top]
    V_Ik = W0_OI.double().T @ U_Ok  # S V^T = U^T W0
    V_Ik = V_Ik / V_Ik.norm(dim=0)
    inner_kk = (U_Ok.T @ D.U_OK * D.S_K) @ (D.V_IK.T @ V_Ik)
    share = float(inner_kk.square().sum() / D.S_K.square().sum())
    return share, U_Ok.shape[1] ** 2 / W0_OI.numel()


def scaled_factors(
    A_rI: Tensor, B_Or: Tensor, scaling: float, found: Intruders, factor: float
) -> tuple[Tensor, Tensor]:
    """Factors of rank r + N whose update is D + (factor - 1) U S V^T (the paper's section on scaling), exactly.

    `factor` 0 removes the intruders from W0 + D, 1 changes nothing. Returns (A, B) in float64, for the same scaling.
    """
    root_N = ((1.0 - factor) * found.S_N / scaling).abs().sqrt()
    sign = 1.0 if (factor - 1.0) * scaling >= 0 else -1.0
    A = torch.cat([A_rI.double(), root_N.unsqueeze(1) * found.V_IN.T])
    B = torch.cat([B_Or.double(), sign * root_N * found.U_ON], dim=1)
    return A, B


def lost_norm(W_OI: Tensor, dtype: torch.dtype) -> float:
    """||round(W) - W|| of fp32 W in `dtype`."""
    return float((W_OI.to(dtype).float() - W_OI).norm())


def decomposition_cost(shape: tuple[int, int]) -> int:
    """What the singular vectors of a matrix cost, up to a constant: max(O, I) min(O, I)^2."""
    return max(shape) * min(shape) ** 2
