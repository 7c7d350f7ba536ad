"""Learning from one's own chosen answers: which are chosen, DPO's split gradient, and where rft and dft are SFT."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlpost.algorithms import losses, objective
from rlpost.algorithms.credit import assign_credit
from rlpost.algorithms.preferences import dpo, with_preferences
from rlpost.algorithms.roles import POLICY, REFERENCE
from rlpost.algorithms.selection import distinct_successes, ranked_pairs
from rlpost.config.schema import AlgoName, Config
from tests.learner_data import random_episodes, small_config, with_algorithm

scores = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([-1.0, 0.0, 0.5, 5.0])), min_size=1, max_size=16
)


def config(name: AlgoName) -> Config:
    return with_algorithm(small_config(), name)


class TestDft:
    def test_a_token_counts_by_its_own_probability(self) -> None:
        """Probabilities 1/2 and 1/8: 1/2 log 2 + 1/8 log 8, and the gradient of the weights left out."""
        logprobs = torch.tensor([0.5, 0.125]).log().requires_grad_()
        loss, metrics = losses.dft_loss(logprobs, 2)
        assert loss.item() == pytest.approx((0.5 * math.log(2) + 0.125 * math.log(8)) / 2)
        assert metrics["loss"].item() == pytest.approx((math.log(2) + math.log(8)) / 2)
        assert metrics["dft_loss"].item() == pytest.approx(loss.item())
        loss.backward()
        torch.testing.assert_close(logprobs.grad, torch.tensor([-0.25, -0.0625]))

    def test_by_logits_the_gradient_of_a_probability(self) -> None:
        """-p grad log p is -grad p: DFT's gradient raises the mean probability of the tokens."""
        logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
        targets = torch.tensor([3, 0, 6, 2, 2])[:, None]
        logprobs = logits.log_softmax(-1).gather(1, targets)[:, 0]
        (found,) = torch.autograd.grad(losses.dft_loss(logprobs, 5)[0], logits)
        probabilities = logits.softmax(-1).gather(1, targets)
        (expected,) = torch.autograd.grad(-probabilities.mean(), logits)
        torch.testing.assert_close(found, expected)

    def test_where_all_probabilities_are_one_it_is_sft(self) -> None:
        found, expected = (torch.zeros(4, requires_grad=True) for _ in range(2))
        losses.dft_loss(found, 4)[0].backward()
        losses.sft_loss(expected, 4)[0].backward()
        assert found.grad is not None
        torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=0)


class TestRft:
    @pytest.mark.parametrize("parts", [1, 5])
    def test_where_all_answers_are_right_it_is_sft_on_them(self, parts: int) -> None:
        """Loss and gradient, in any number of micro-batches."""
        cfg, episodes = config(AlgoName.rft), [replace(t, success=True) for t in random_episodes(6)]
        batch, metrics = assign_credit(episodes, {}, cfg)
        assert metrics["kept_episodes"] == 1.0
        logprobs = -torch.rand(len(batch.sampling_N), generator=torch.Generator().manual_seed(1))
        mine, theirs = logprobs.clone().requires_grad_(), logprobs.clone().requires_grad_()
        loss_of = objective.minibatch_loss(batch, range(6), cfg)
        found = sum(
            loss_of(objective.Outputs(mine[slots], torch.zeros(len(slots))), slots)[0]
            for slots in torch.arange(len(mine)).chunk(parts)
        )
        expected, _ = losses.sft_loss(theirs, len(theirs))
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, expected)
        found.backward()
        expected.backward()
        torch.testing.assert_close(mine.grad, theirs.grad)

    def test_the_first_of_equal_successes_is_kept(self) -> None:
        """A wrong answer with the tokens of a right one is none, and takes nobody's place."""
        chosen = distinct_successes([False, True, True, True], [[1, 2], [1, 2], [1, 2], [1, 3]])
        assert chosen.learnt_B.tolist() == [False, True, False, True]
        assert chosen.metrics == {"kept_episodes": 0.5}

    def test_without_a_success_nothing_is_learnt_and_no_weight_is_infinite(self) -> None:
        cfg, episodes = config(AlgoName.rft), random_episodes(4)
        batch, metrics = assign_credit(episodes, {}, cfg)
        assert metrics["kept_episodes"] == 0.0
        slots = torch.arange(len(batch.sampling_N))
        outputs = objective.Outputs(batch.sampling_N, torch.zeros(len(slots)))
        assert objective.minibatch_loss(batch, range(4), cfg)(outputs, slots)[0] == 0.0


def pairs_by_hand(rewards: list[float]) -> list[tuple[int, int]]:
    """Take the best and the worst out, while they differ."""
    left, found = list(range(len(rewards))), []
    while len(left) > 1:
        best = max(left, key=lambda i: (rewards[i], -i))
        worst = min(left, key=lambda i: (rewards[i], -i))
        if rewards[best] == rewards[worst]:
            break
        found.append((best, worst))
        left = [i for i in left if i not in (best, worst)]
    return found


class TestPairs:
    @given(scores)
    def test_the_best_left_with_the_worst_left(self, batch: list[tuple[int, float]]) -> None:
        groups, rewards = [g for g, _ in batch], [r for _, r in batch]
        found = ranked_pairs(torch.tensor(rewards), torch.tensor(groups))
        assert found.pairs_P2 is not None
        expected = []
        for group in set(groups):
            members = [i for i, g in enumerate(groups) if g == group]
            expected += [(members[a], members[b]) for a, b in pairs_by_hand([rewards[i] for i in members])]
        assert sorted(map(tuple, found.pairs_P2.tolist())) == sorted(expected)
        paired = {groups[winner] for winner, _ in expected}
        assert found.metrics["paired_groups"] == pytest.approx(len(paired) / len(set(groups)))
        assert found.metrics["kept_episodes"] == pytest.approx(2 * len(expected) / len(batch))
        signs = [0.0] * len(batch)
        for winner, loser in expected:
            signs[winner], signs[loser] = 1.0, -1.0
        assert found.advantages_B.tolist() == signs

    @given(st.integers(0, 6), st.integers(0, 6))
    def test_right_and_wrong_make_as_many_pairs_as_there_are_of_the_rarer(
        self, right: int, wrong: int
    ) -> None:
        rewards = torch.tensor([1.0] * right + [0.0] * wrong + [0.0])
        found = ranked_pairs(rewards, torch.zeros(len(rewards), dtype=torch.long)).pairs_P2
        assert found is not None
        assert len(found) == min(right, wrong + 1)
        assert all(rewards[winner] > rewards[loser] for winner, loser in found.tolist())

    def test_rewards_that_differ_by_rounding_make_no_pair(self) -> None:
        rewards = torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)
        assert rewards[0] != rewards[1]
        assert not ranked_pairs(rewards, torch.zeros(2, dtype=torch.long)).learnt_B.any()


def trl_sigmoid(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """The loss of TRL's DPOTrainer, loss_type "sigmoid" without label smoothing, of summed log-probs."""
    logratios = chosen - rejected
    ref_logratios = ref_chosen - ref_rejected
    return -torch.nn.functional.logsigmoid(beta * (logratios - ref_logratios))


class TestDpo:
    @pytest.mark.parametrize("beta", [0.1, 1.0])
    def test_loss_margin_accuracy_and_gradient_are_trls(self, beta: float) -> None:
        torch.manual_seed(0)
        logprobs, reference = (10 * torch.randn(8, dtype=torch.float64) for _ in range(2))
        logprobs.requires_grad_()
        pairs = torch.tensor([[0, 5], [3, 1], [7, 2]])
        won, lost = pairs.unbind(1)
        terms = trl_sigmoid(logprobs[won], logprobs[lost], reference[won], reference[lost], beta)
        (expected,) = torch.autograd.grad(terms.mean(), logprobs)
        advantages, metrics = dpo(logprobs.detach(), reference, pairs, beta)
        torch.testing.assert_close(-advantages / 3, expected, rtol=0, atol=1e-9)
        assert metrics["policy_loss"].item() == pytest.approx(terms.mean().item(), abs=1e-6)
        chosen, rejected = (beta * (logprobs[i] - reference[i]).detach() for i in (won, lost))
        assert metrics["dpo_margin"].item() == pytest.approx((chosen - rejected).mean().item())
        assert metrics["dpo_accuracy"].item() == pytest.approx((chosen > rejected).double().mean().item())

    def test_at_the_start_the_loss_is_log_2_and_every_pair_pulls_alike(self) -> None:
        logprobs = -5 * torch.rand(4, dtype=torch.float64)
        advantages, metrics = dpo(logprobs, logprobs, torch.tensor([[0, 1], [3, 2]]), 0.1)
        assert metrics["policy_loss"].item() == pytest.approx(math.log(2))
        assert metrics["dpo_margin"] == metrics["dpo_accuracy"] == 0
        assert advantages.tolist() == pytest.approx([0.05, -0.05, -0.05, 0.05])

    @settings(deadline=None, max_examples=25)
    @given(st.permutations(range(8)), st.integers(1, 7), st.integers(0, 9))
    def test_however_episodes_fall_into_micro_batches_the_gradient_is_the_formulas(
        self, order: list[int], cut: int, seed: int
    ) -> None:
        """Winner and loser of a pair may be apart. Autograd of the formula on whole episodes, token by token."""
        cfg, episodes = config(AlgoName.dpo), random_episodes(8, seed=seed, group_size=4)
        batch, _ = assign_credit(episodes, {}, cfg)
        assert batch.pairs_P2 is not None
        if not len(batch.pairs_P2):
            return
        dice = torch.Generator().manual_seed(seed)
        count = len(batch.sampling_N)
        new = (-3 * torch.rand(count, generator=dice)).requires_grad_()
        reference = -3 * torch.rand(count, generator=dice)
        known = {POLICY: new.detach(), REFERENCE: reference}
        weighed, metrics = with_preferences(batch, range(8), known, cfg.algo.dpo_beta)
        loss_of = objective.minibatch_loss(weighed, range(8), cfg)
        found = torch.zeros(count)
        for members in (order[:cut], order[cut:]):
            slots = torch.isin(batch.layout.episodes_N, torch.tensor(members)).nonzero()[:, 0]
            outputs = objective.Outputs(new[slots], torch.zeros(len(slots)))
            (grad,) = torch.autograd.grad(loss_of(outputs, slots)[0], new)
            found += grad
        ends = list(itertools.accumulate(t.answer_tokens for t in episodes))
        sums = [torch.sum((new - reference)[a:b]) for a, b in itertools.pairwise([0, *ends])]
        terms = [
            torch.log1p(torch.exp(-cfg.algo.dpo_beta * (sums[w] - sums[x])))
            for w, x in batch.pairs_P2.tolist()
        ]
        expected = torch.stack(terms).mean()
        (gradient,) = torch.autograd.grad(expected, new)
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-7)
        assert metrics["policy_loss"] == pytest.approx(expected.item(), rel=1e-5)

    def test_a_minibatch_has_its_own_pairs_only(self) -> None:
        cfg = config(AlgoName.dpo)
        episodes = [
            replace(t, turns=(replace(t.turns[0], reward=float(i % 2)),))
            for i, t in enumerate(random_episodes(8, group_size=4))
        ]
        batch, _ = assign_credit(episodes, {}, cfg)
        zeros = torch.zeros(len(batch.sampling_N))
        weighed, _ = with_preferences(batch, range(4), {POLICY: zeros, REFERENCE: zeros}, 0.1)
        of_episodes = batch.layout.per_episode(weighed.advantages_N) / batch.layout.lengths_B
        assert of_episodes.tolist() == pytest.approx([-0.05, 0.05, -0.05, 0.05, 0, 0, 0, 0])
