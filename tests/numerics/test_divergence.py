"""The estimates of a KL divergence, against the divergence by enumeration and errors by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlpost.algorithms.divergence import divergence

P = (0.5, 0.3, 0.2)  # the sampling policy's first token; 0 ends the episode
Q = (0.2, 0.2, 0.6)
AFTER_P = {1: (0.7, 0.3), 2: (0.4, 0.6)}  # its second token, after 1 or 2
AFTER_Q = {1: (0.5, 0.5), 2: (0.9, 0.1)}


def sequences() -> list[tuple[float, list[float], list[float]]]:
    """Every episode: its probability under p, and its tokens' log-probs under p and q."""
    found = [(P[0], [math.log(P[0])], [math.log(Q[0])])]
    for first, second in itertools.product((1, 2), (0, 1)):
        logs = [
            [math.log(one[first]), math.log(after[first][second])]
            for one, after in ((P, AFTER_P), (Q, AFTER_Q))
        ]
        found.append((P[first] * AFTER_P[first][second], logs[0], logs[1]))
    return found


def kl(p: tuple[float, ...], q: tuple[float, ...]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


EPISODE_KL = kl(P, Q) + sum(P[first] * kl(AFTER_P[first], AFTER_Q[first]) for first in (1, 2))
TOKENS = 1 + P[1] + P[2]


def drawn(copies: int) -> dict[str, float]:
    """The estimates from a sample in which every episode has exactly its share: the expectation itself."""
    p, q, lengths = list[float](), list[float](), list[int]()
    for probability, under_p, under_q in sequences():
        for _ in range(round(copies * probability)):
            p, q, lengths = p + under_p, q + under_q, [*lengths, len(under_p)]
    assert len(lengths) == copies
    return divergence(torch.tensor(p), torch.tensor(q), lengths)


def test_both_estimators_have_the_expectation_of_the_enumeration() -> None:
    found = drawn(100)
    for estimator in ("k1", "k3"):
        assert found[f"{estimator}_episode"] == pytest.approx(EPISODE_KL, abs=1e-6)
        assert found[f"{estimator}_token"] == pytest.approx(EPISODE_KL / TOKENS, abs=1e-6)


def test_the_episodes_divergence_is_that_of_whole_sequences() -> None:
    whole = sum(probability * (sum(p) - sum(q)) for probability, p, q in sequences())
    assert pytest.approx(whole) == EPISODE_KL


def test_errors_by_hand() -> None:
    """Two episodes, of 1 and 3 tokens, k1 0.3 and 0.1, 0.2, 0.4: sums 0.3 and 0.7, mean 0.25 a token and 0.5 each."""
    found = divergence(torch.tensor([0.3, 0.1, 0.2, 0.4]), torch.zeros(4), [1, 3])
    assert found["k1_token"] == pytest.approx(0.25)
    assert found["k1_episode"] == pytest.approx(0.5)
    assert found["k1_episode_error"] == pytest.approx(0.2)  # deviation 0.2828, over the root of 2
    # Residuals 0.3 - 0.25 and 0.7 - 0.75; the root of 2 / 1 times the sum of their squares, over 4 tokens.
    assert found["k1_token_error"] == pytest.approx((2 * (0.05**2 + 0.05**2)) ** 0.5 / 4)


def test_the_error_of_a_mean_over_tokens_covers_the_truth() -> None:
    """Of 400 samples of 50 episodes, about 95% lie within 1.96 standard errors of the enumeration."""
    generator = torch.Generator().manual_seed(5)
    every = sequences()
    weights = torch.tensor([probability for probability, _, _ in every])
    hits = 0
    for _ in range(400):
        chosen = [
            every[int(i)] for i in torch.multinomial(weights, 50, replacement=True, generator=generator)
        ]
        p = torch.tensor([x for _, under_p, _ in chosen for x in under_p])
        q = torch.tensor([x for _, _, under_q in chosen for x in under_q])
        found = divergence(p, q, [len(under_p) for _, under_p, _ in chosen])
        gap = abs(found["k3_token"] - EPISODE_KL / TOKENS)
        hits += gap < 1.96 * found["k3_token_error"]
    assert 0.90 < hits / 400 < 0.99


logprobs = st.floats(-30, -1e-3)


@given(st.lists(st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=4), min_size=2, max_size=6))
def test_k3_is_never_negative_and_equal_policies_have_no_divergence(
    episodes: list[list[tuple[float, float]]],
) -> None:
    lengths = [len(each) for each in episodes]
    p, q = (torch.tensor([pair[i] for each in episodes for pair in each]) for i in (0, 1))
    assert divergence(p, q, lengths)["k3_token"] >= 0.0
    assert set(divergence(p, p, lengths).values()) == {0.0}


@pytest.mark.parametrize("lengths", [[4], [], [4, 0]])
def test_what_has_no_error_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="two episodes"):
        divergence(torch.zeros(4), torch.zeros(4), lengths)
