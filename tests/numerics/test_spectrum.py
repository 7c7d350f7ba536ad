"""The spectrum of an update, with torch's SVD of full matrices and cases by hand as witnesses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlpost.algorithms import spectrum

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31 - 1))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(O: int, I: int, r: int, seed: int, zeros: int = 0) -> tuple[Tensor, Tensor]:  # noqa: E741
    """A (r, I) and B (O, r), the last `zeros` columns of B zero."""
    A, B = random(seed, r, I), random(seed + 1, O, r)
    B[:, r - min(zeros, r) :] = 0.0
    return A, B


def whole(found: spectrum.Svd) -> Tensor:
    return found.U_OK @ found.S_K.diag() @ found.V_IK.T


@given(SHAPES, st.integers(0, 6))
def test_factors_have_the_singular_values_of_their_product(
    sizes: tuple[int, int, int, int], zeros: int
) -> None:
    A, B = factors(*sizes, zeros)
    D = 1.7 * B @ A
    found = spectrum.of_factors(A, B, 1.7)
    values = torch.linalg.svdvals(D)
    rank = int(torch.linalg.matrix_rank(D))
    assert len(found.S_K) == rank
    torch.testing.assert_close(found.S_K, values[:rank])
    torch.testing.assert_close(whole(found), D, rtol=1e-9, atol=1e-9)
    for basis in (found.U_OK, found.V_IK):
        torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64))


@given(SHAPES)
def test_another_basis_of_the_rank_changes_nothing(sizes: tuple[int, int, int, int]) -> None:
    """B R^-1 and R A are the same update."""
    A, B = factors(*sizes)
    R = random(sizes[3] + 2, len(A), len(A)) + 3 * torch.eye(len(A), dtype=torch.float64)
    first = spectrum.of_factors(A, B, 0.5)
    second = spectrum.of_factors(R @ A, torch.linalg.solve(R, B, left=False), 0.5)
    torch.testing.assert_close(first.S_K, second.S_K, rtol=1e-6, atol=1e-9)
    assert spectrum.overlap(first.U_OK, second.U_OK) == pytest.approx(1.0)
    assert spectrum.alignment(first, second) == pytest.approx(1.0)


@given(SHAPES)
def test_a_matrix_gives_what_its_factors_give(sizes: tuple[int, int, int, int]) -> None:
    A, B = factors(*sizes)
    torch.testing.assert_close(spectrum.of_matrix(B @ A).S_K, spectrum.of_factors(A, B, 1.0).S_K)


def test_no_update_has_no_directions() -> None:
    none = spectrum.of_factors(random(0, 3, 5), torch.zeros(4, 3), 2.0)
    assert none.U_OK.shape == (4, 0)
    assert spectrum.effective_rank(none.S_K) == spectrum.stable_rank(none.S_K) == 0.0
    assert spectrum.alignment(none, none) == spectrum.overlap(none.U_OK, none.U_OK) == 0.0


def test_singular_values_within_rounding_count_as_zero() -> None:
    assert spectrum.of_matrix(torch.diag(torch.tensor([2.0, 0.25])), floor=0.25).S_K.tolist() == [2.0]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_ranks_by_their_definitions(values: list[float]) -> None:
    values.sort(reverse=True)
    S = torch.tensor(values, dtype=torch.float64)
    entropy = -sum(v / sum(values) * math.log(v / sum(values)) for v in values)
    assert spectrum.effective_rank(S) == pytest.approx(math.exp(entropy))
    assert spectrum.stable_rank(S) == pytest.approx(sum(v * v for v in values) / max(values) ** 2)


def test_ranks_by_hand() -> None:
    """Equal singular values count whole; 3 and 1 have the entropy of 3/4 and 1/4."""
    assert spectrum.effective_rank(torch.full((5,), 0.3)) == pytest.approx(5)
    assert spectrum.stable_rank(torch.full((5,), 0.3)) == pytest.approx(5)
    assert spectrum.effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75)
    assert spectrum.stable_rank(torch.tensor([3.0, 1.0])) == pytest.approx(10 / 9)


def test_angles_by_hand() -> None:
    """The plane of x and y against one that is tilted about x by 30 degrees."""
    eye, tilt = torch.eye(3, dtype=torch.float64), math.radians(30)
    tilted = torch.stack([eye[0], math.cos(tilt) * eye[1] + math.sin(tilt) * eye[2]], dim=1)
    angles = spectrum.principal_angles(eye[:, :2], tilted)
    torch.testing.assert_close(angles, torch.tensor([0.0, tilt], dtype=torch.float64))
    assert spectrum.overlap(eye[:, :2], tilted) == pytest.approx((1 + math.cos(tilt) ** 2) / 2)
    assert spectrum.overlap(eye[:, :2], eye[:, 2:]) == 0.0


@given(SHAPES, st.integers(1, 6))
def test_angles_and_alignment_against_scipy_and_the_plain_product(
    sizes: tuple[int, int, int, int], other: int
) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    O, I, r, seed = sizes  # noqa: E741
    one, two = factors(O, I, r, seed), factors(O, I, other, seed + 7)
    first, second = spectrum.of_factors(*one, 1.0), spectrum.of_factors(*two, 1.0)
    angles = spectrum.principal_angles(first.U_OK, second.U_OK)
    theirs = linalg.subspace_angles(first.U_OK.numpy(), second.U_OK.numpy())
    torch.testing.assert_close(angles.flip(0), torch.from_numpy(theirs), atol=1e-6, rtol=0)
    assert spectrum.overlap(first.U_OK, second.U_OK) == pytest.approx(float(angles.cos().square().mean()))
    D1, D2 = one[1] @ one[0], two[1] @ two[0]
    assert spectrum.alignment(first, second) == pytest.approx(
        float((D1 * D2).sum() / (D1.norm() * D2.norm()))
    )


def brute_intruders(W0: Tensor, W: Tensor, top: int, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """By SVDs of both full matrices."""
    U0 = torch.linalg.svd(W0, full_matrices=False).U
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    chosen = [j for j in range(min(top, len(S))) if (U0.T @ U[:, j]).abs().max() < epsilon]
    return U[:, chosen], S[chosen], Vh[chosen].T


@given(
    st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.sampled_from([0.3, 0.5, 0.8, 0.95]), SHAPES
)
def test_intruders_against_full_decompositions(
    O: int,  # noqa: E741
    I: int,  # noqa: E741
    top: int,
    epsilon: float,
    sizes: tuple[int, int, int, int],
) -> None:
    seed = sizes[3]
    A, B = factors(O, I, 2, seed)
    W0 = random(seed + 3, O, I)
    W = W0 + B @ A
    found = spectrum.find_intruders(spectrum.left_vectors(W0), W, top, epsilon)
    U, S, V = brute_intruders(W0, W, top, epsilon)
    torch.testing.assert_close(found.S_N, S, rtol=1e-6, atol=1e-9)
    ours, theirs = (u @ s.diag() @ v.T for u, s, v in ((found.U_ON, found.S_N, found.V_IN), (U, S, V)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def orthogonal(seed: int, n: int) -> Tensor:
    return torch.linalg.qr(random(seed, n, n)).Q


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (12, 8), (8, 12)])
def test_one_planted_direction_is_one_intruder(rows: int, columns: int) -> None:
    """W0 has singular values 4 to 1 on the first 4 axes of a basis. A direction that leans on all of them equally has
    a |cosine| of 1/2 to none, and stands out with a singular value of 50."""
    U, V = orthogonal(1, rows), orthogonal(2, columns)
    W0 = U[:, :7] @ torch.diag(torch.arange(7.0, 0.0, -1.0, dtype=torch.float64)) @ V[:, :7].T
    planted = U[:, :7].sum(dim=1) / math.sqrt(7)
    W = W0 + 50 * torch.outer(planted, V[:, 7])
    found = spectrum.find_intruders(spectrum.left_vectors(W0), W, top=1)
    assert len(found.S_N) == 1
    assert float((found.U_ON[:, 0] @ planted).abs()) > 0.99
    assert len(spectrum.find_intruders(spectrum.left_vectors(W0), W0).S_N) == 0


def test_other_sizes_of_its_own_directions_are_no_intruders() -> None:
    U, V = orthogonal(3, 6), orthogonal(4, 6)
    W0 = U @ torch.diag(torch.tensor([6.0, 5, 4, 3, 2, 1], dtype=torch.float64)) @ V.T
    W = U @ torch.diag(torch.tensor([0.1, 50, 4, 30, 2.5, 1], dtype=torch.float64)) @ V.T
    assert len(spectrum.find_intruders(spectrum.left_vectors(W0), W).S_N) == 0


def test_a_direction_that_a_weight_of_low_rank_lacks_is_an_intruder() -> None:
    W0 = torch.zeros(5, 4)
    W0[0, 0] = 1.0
    W = W0.clone()
    W[3, 2] = 2.0
    found = spectrum.find_intruders(spectrum.left_vectors(W0), W)
    assert found.S_N.tolist() == pytest.approx([2.0])
    assert len(spectrum.find_intruders(spectrum.left_vectors(torch.zeros(5, 4)), W).S_N) == 2


@pytest.mark.parametrize("scaling", [2.0, 0.25, -1.5])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5])
def test_scaled_factors_are_the_full_matrices_arithmetic(factor: float, scaling: float) -> None:
    W0 = random(5, 9, 11)
    A, B = factors(9, 11, 3, 6)
    W = W0 + scaling * 4 * B @ A
    found = spectrum.find_intruders(spectrum.left_vectors(W0), W, top=5, epsilon=0.7)
    assert len(found.S_N) > 0
    U, S, V = brute_intruders(W0, W, 5, 0.7)
    A_new, B_new = spectrum.scaled_factors(A, 4 * B, scaling, found, factor)
    assert A_new.shape == (3 + len(S), 11)
    expected = W + (factor - 1) * U @ S.diag() @ V.T
    torch.testing.assert_close(W0 + scaling * B_new @ A_new, expected, rtol=1e-9, atol=1e-9)


def test_what_rounding_loses() -> None:
    """1 + 2^-9 is halfway to nothing in bfloat16, which keeps 7 bits after the point."""
    W = torch.tensor([[1.0 + 2**-9, 1.0]])
    assert spectrum.lost_norm(W, torch.bfloat16) == 2**-9
    assert spectrum.lost_norm(W, torch.float32) == 0.0


def share(D: Tensor, W0: Tensor, top: int) -> tuple[float, float]:
    return spectrum.in_principal(spectrum.of_matrix(D), W0, spectrum.left_vectors(W0), top)


def test_the_share_in_principal_directions_by_hand() -> None:
    """W0 = diag(4, 3, 2, 1), without its last column: its singular vectors are the axes."""
    W0 = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))[:, :3]
    D = torch.zeros(4, 3)
    D[0, 0] = 2.0
    assert share(D, W0, 1) == (pytest.approx(1.0), 1 / 12)  # D = 2 u1 v1^T
    D[1, 2] = 1.0  # u2 v3^T: outside of the two leading ones on the right, inside of three
    assert share(D, W0, 2) == (pytest.approx(4 / 5), 4 / 12)
    assert share(D, W0, 3) == (pytest.approx(1.0), 9 / 12)
    D[0, 0] = 0.0
    assert share(D, W0, 2)[0] == pytest.approx(0.0)
    D[1, 2], D[3, 0] = 0.0, 1.0  # W0 has rank 3: u4 is no direction of it, however many are asked for
    assert share(D, W0, 10) == (pytest.approx(0.0), 9 / 12)


def test_a_random_update_has_the_share_of_chance() -> None:
    W0 = random(0, 30, 20)
    shares = [share(random(seed, 30, 20), W0, 5)[0] for seed in range(1, 201)]
    by_chance = 25 / 600
    # The share is a mean of 25 of 600 squares of normals: a standard deviation of about by_chance * sqrt(2 / 25).
    assert sum(shares) / 200 == pytest.approx(by_chance, abs=4 * by_chance * math.sqrt(2 / 25 / 200))


@given(SHAPES, st.integers(1, 12))
def test_the_share_is_one_of_a_projection_and_ignores_the_scale(
    sizes: tuple[int, int, int, int], top: int
) -> None:
    A, B = factors(*sizes)
    W0 = random(sizes[3] + 9, sizes[0], sizes[1])
    U, _, Vh = torch.linalg.svd(W0, full_matrices=False)
    U, V = U[:, :top], Vh[:top].T
    D = B @ A
    expected = float((U @ U.T @ D @ V @ V.T).norm() ** 2 / D.norm() ** 2)
    assert share(D, W0, top)[0] == pytest.approx(expected, abs=1e-5)
    assert share(-3.0 * D, W0, top)[0] == pytest.approx(expected, abs=1e-5)
    assert -1e-12 <= expected <= 1 + 1e-12
