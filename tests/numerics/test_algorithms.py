"""Every row of the table, from episodes to loss and gradient, against the paper's formula; limits; a bandit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlpost.algorithms import objective
from rlpost.algorithms.credit import TrainingBatch, assign_credit
from rlpost.algorithms.preferences import with_preferences
from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, TEACHER
from rlpost.config.presets import TABLE
from rlpost.config.schema import AlgoName, Config, KlEstimator, KlPlace, RewardControl, Rewards, RolloutIS
from rlpost.types import Ending, Finish, Trajectory, Turn
from tests.learner_data import random_episodes, small_config, with_algorithm
from tests.numerics.papers import PAPERS, Batch, Played, PlayedTurn, Token

EVERY = sorted(AlgoName, key=lambda name: name.name)
GROUPED = [name for name in EVERY if TABLE[name].grouped]


def _config(name: AlgoName) -> Config:
    cfg = with_algorithm(small_config(), name)
    cfg.rollout.max_new_tokens, cfg.algo.overlong_buffer = 6, min(cfg.algo.overlong_buffer, 3)
    if name is AlgoName.ppo_turn:
        cfg.algo.thought_weight = 0.5
    return cfg


def _episodes() -> list[Trajectory]:
    """Three groups of four, of one to three turns, the first tokens of some answers thought, some right."""
    found = [replace(t, success=t.total_reward > 0) for t in random_episodes(12, seed=2, group_size=4)]
    return [
        replace(t, turns=tuple(replace(turn, thought_tokens=i % 3) for i, turn in enumerate(t.turns)))
        for t in found
    ]


class Numbers:
    """Log-probs and values of a batch: old ones, a reference's and a teacher's, and new ones with a gradient."""

    def __init__(self, episodes: Sequence[Trajectory], spread: float = 0.5) -> None:
        count, generator = sum(t.answer_tokens for t in episodes), torch.Generator().manual_seed(11)
        old, reference, value, new, later = (
            torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(5)
        )
        self.old, self.reference, self.value = -2 + 0.3 * old, -2 + 0.3 * reference, value
        self.new = (self.old + spread * new).requires_grad_()
        self.later = (self.value + later).requires_grad_()
        self.teacher = -2 + 0.3 * torch.randn(count, generator=generator, dtype=torch.float64)

    def credit(self, episodes: Sequence[Trajectory], cfg: Config) -> tuple[TrainingBatch, dict[str, float]]:
        known = {POLICY: self.old, CRITIC: self.value, REFERENCE: self.reference, TEACHER: self.teacher}
        scores = {name: known[name].float() for name in objective.roles_to_compute(cfg)}
        return assign_credit(episodes, scores, cfg)

    def loss(self, credit: TrainingBatch, cfg: Config, slots: Tensor, episodes: Sequence[int]) -> Tensor:
        outputs = objective.Outputs(self.new[slots], torch.ones(len(slots)))
        if TABLE[cfg.algo.name].critic:
            outputs = outputs._replace(values_N=self.later[slots])
        if credit.pairs_P2 is not None:
            return self.of_pairs(credit, cfg, outputs, slots, episodes)
        loss_of = objective.minibatch_loss(credit, episodes, cfg)
        return loss_of(outputs, slots)[0]

    def of_pairs(
        self,
        credit: TrainingBatch,
        cfg: Config,
        outputs: objective.Outputs,
        slots: Tensor,
        episodes: Sequence[int],
    ) -> Tensor:
        """The surrogate's gradient, with the loss itself, shared by tokens, as its value."""
        known = {POLICY: self.new.detach(), REFERENCE: self.reference}
        weighed, metrics = with_preferences(credit, episodes, known, cfg.algo.dpo_beta)
        surrogate = objective.minibatch_loss(weighed, episodes, cfg)(outputs, slots)[0]
        share = len(slots) / int(credit.layout.lengths_B[list(episodes)].sum())
        return surrogate - surrogate.detach() + share * metrics["policy_loss"]

    def batch(self, episodes: Sequence[Trajectory], cfg: Config) -> Batch:
        """The same as plain floats for the papers' formulas."""
        batch, n = [], 0
        for t in episodes:
            turns = []
            for turn in t.turns:
                tokens = []
                for k in range(len(turn.answer_ids)):
                    floats = [x[n].item() for x in (self.old, self.reference, self.value)]
                    thought, teacher = k < turn.thought_tokens, self.teacher[n].item()
                    tokens.append(Token(*floats, thought, self.new[n], self.later[n], teacher))
                    n += 1
                turns.append(PlayedTurn(tokens, turn.reward * cfg.algo.reward_scale))
            batch.append(Played(t.group, turns, t.success))
        return batch

    def gradients(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.autograd.grad(loss, (self.new, self.later), retain_graph=True, allow_unused=True)
        return tuple(torch.zeros_like(self.new) if g is None else g for g in found)  # type: ignore[return-value]


def _whole(numbers: Numbers, episodes: Sequence[Trajectory], cfg: Config) -> Tensor:
    credit, _ = numbers.credit(episodes, cfg)
    return numbers.loss(credit, cfg, torch.arange(len(numbers.old)), range(len(episodes)))


def _equal(found: Tensor, expected: Tensor, numbers: Numbers) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(numbers.gradients(found), numbers.gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_every_algorithm_has_a_row_and_a_witness() -> None:
    assert set(TABLE) == set(AlgoName)
    assert set(PAPERS) == {name.name for name in AlgoName}


@pytest.mark.parametrize("name", EVERY)
def test_loss_and_gradient_are_the_papers(name: AlgoName) -> None:
    cfg, episodes = _config(name), _episodes()
    numbers = Numbers(episodes, spread=1.5)  # wide enough for every clip, and the ceiling of ppo_turn
    expected = PAPERS[name.name](numbers.batch(episodes, cfg), cfg.algo, cfg.rollout.max_new_tokens)
    assert numbers.gradients(expected)[0].abs().max() > 1e-3
    _equal(_whole(numbers, episodes, cfg), expected, numbers)


@pytest.mark.parametrize("estimator", [KlEstimator.k2, KlEstimator.k3])
@pytest.mark.parametrize("far", [-100.0, 100.0])
@pytest.mark.parametrize("name", EVERY)
def test_a_policy_far_from_the_old_one_has_a_finite_gradient(
    name: AlgoName, far: float, estimator: KlEstimator
) -> None:
    """Every token's log-prob has moved by `far`, in float32, with a penalty in the loss."""
    cfg, episodes = _config(name), _episodes()
    cfg.algo.kl, cfg.algo.kl_estimator = KlPlace.loss, estimator
    numbers = Numbers(episodes)
    numbers.new = (numbers.old.float() + far).requires_grad_()
    loss = _whole(numbers, episodes, cfg)
    assert torch.isfinite(loss)
    assert torch.isfinite(numbers.gradients(loss)[0]).all()


def test_a_ratio_of_whole_answers_is_taken_sample_by_sample() -> None:
    """A micro-batch may hold one sample of an episode without the other."""
    cfg, episodes = _config(AlgoName.gspo), _episodes()
    split = [replace(t, turns=tuple(replace(turn, opens_sample=True) for turn in t.turns)) for t in episodes]
    credit, _ = Numbers(split).credit(split, cfg)
    assert max(len(t.turns) for t in split) > 1
    assert torch.equal(credit.layout.units_N(TABLE[AlgoName.gspo].ratio), credit.layout.turns_N)


@pytest.mark.parametrize("name", EVERY)
def test_micro_batches_of_whole_episodes_add_up(name: AlgoName) -> None:
    cfg, episodes = _config(name), _episodes()
    numbers = Numbers(episodes)
    credit, _ = numbers.credit(episodes, cfg)
    everyone = list(range(len(episodes)))
    ids = credit.layout.episodes_N
    shuffled = [[7], [3, 0, 11], [1, 2, 4, 5, 6], [8, 9, 10]]
    shares = [torch.isin(ids, torch.tensor(share)).nonzero()[:, 0].flip(0) for share in shuffled]
    parts = sum(numbers.loss(credit, cfg, slots, everyone) for slots in shares)
    assert isinstance(parts, Tensor)
    _equal(parts, _whole(numbers, episodes, cfg), numbers)


@pytest.mark.parametrize("name", [name for name in GROUPED if name is not AlgoName.reinforce_pp_baseline])
def test_a_minibatch_of_one_group_is_that_groups_own_batch(name: AlgoName) -> None:
    """Weights are those of the minibatch, not of the batch (which whitening alone would look at)."""
    cfg, episodes = _config(name), _episodes()
    numbers, alone = Numbers(episodes), Numbers(episodes)
    credit, _ = numbers.credit(episodes, cfg)
    slots = torch.arange(sum(t.answer_tokens for t in episodes[:4]))
    found = numbers.loss(credit, cfg, slots, range(4))
    for key in ("old", "reference", "value", "new", "later", "teacher"):
        setattr(alone, key, getattr(alone, key)[slots])
    torch.testing.assert_close(found, _whole(alone, episodes[:4], cfg))


@pytest.mark.parametrize("name", EVERY)
def test_feedback_and_prompts_change_nothing(name: AlgoName) -> None:
    """Neither how many tokens the environment wrote nor which."""
    cfg, episodes = _config(name), _episodes()
    numbers = Numbers(episodes)
    chatty = [
        replace(t, turns=tuple(replace(turn, context_ids=(5, *turn.context_ids, 9, 9)) for turn in t.turns))
        for t in episodes
    ]
    assert torch.equal(_whole(numbers, chatty, cfg), _whole(numbers, episodes, cfg))


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_equal_rewards_have_no_gradient(name: AlgoName) -> None:
    cfg = _config(name)
    cfg.algo.kl, cfg.algo.overlong_buffer = KlPlace.none, 0
    episodes = [replace(t, turns=(replace(t.turns[0], reward=0.1 * t.group),)) for t in _episodes()]
    numbers = Numbers(episodes)
    credit, metrics = numbers.credit(episodes, cfg)
    loss = numbers.loss(credit, cfg, torch.arange(len(numbers.old)), range(len(episodes)))
    assert metrics["flat_groups"] == 1.0
    assert not numbers.gradients(loss)[0].any()


def test_a_control_is_told_nothing_by_the_length_of_an_answer() -> None:
    """Equal rewards, answers of different lengths: DAPO's length penalty is the only signal, and a control has none."""
    cfg = _config(AlgoName.dapo)
    episodes = [replace(t, turns=tuple(replace(u, reward=1.0) for u in t.turns[:1])) for t in _episodes()]
    plain, metrics = Numbers(episodes).credit(episodes, cfg)
    assert metrics["overlong_penalty"] < 0
    assert plain.advantages_N.any()
    cfg.algo.reward_control = RewardControl.random
    control, metrics = Numbers(episodes).credit(episodes, cfg)
    assert "overlong_penalty" not in metrics
    assert not control.advantages_N.any()


def test_equal_clips_make_dapo_grpo_at_the_token_level() -> None:
    """One token-level mean, no penalties: DAPO's loss with clip_high = clip is GRPO's where all episodes have the
    same number of tokens, and differs from it where they have not."""
    episodes = _episodes()
    even = [replace(t, turns=tuple(_cut(turn) for turn in t.turns[:1])) for t in episodes]
    for batch, same in ((even, True), (episodes, False)):
        dapo, grpo = _config(AlgoName.dapo), _config(AlgoName.grpo)
        dapo.algo.clip_high, dapo.algo.overlong_buffer, grpo.algo.kl = None, 0, KlPlace.none
        numbers = Numbers(batch)
        found, expected = _whole(numbers, batch, dapo), _whole(numbers, batch, grpo)
        assert torch.allclose(found, expected, rtol=1e-5) == same


def _cut(turn: Turn) -> Turn:
    return replace(turn, answer_ids=turn.answer_ids[:2], logprobs=turn.logprobs[:2])


def test_gamma_and_lambda_one_make_ppo_monte_carlo() -> None:
    """The advantage is the sum of all rewards to come less the value, per token and per turn."""
    for name in (AlgoName.ppo, AlgoName.ppo_turn):
        cfg, episodes = _config(name), _episodes()
        cfg.algo.gamma = cfg.algo.gae_lambda = 1.0
        cfg.algo.whiten_advantages, cfg.algo.kl = False, KlPlace.none
        numbers = Numbers(episodes)
        credit, _ = numbers.credit(episodes, cfg)
        expected, n = [], 0
        for t in episodes:
            for i, turn in enumerate(t.turns):
                to_come = sum(later.reward for later in t.turns[i:]) * cfg.algo.reward_scale
                first = n
                for _ in turn.answer_ids:
                    at = n if name is AlgoName.ppo else first
                    expected.append(to_come - numbers.value[at].item())
                    n += 1
        torch.testing.assert_close(credit.advantages_N, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_process_supervision_by_hand() -> None:
    """Turn rewards 1, 3 | 2 of one group: mean 2, deviation 1; a turn's advantage sums those from it on."""
    cfg = _config(AlgoName.grpo)
    cfg.algo.rewards, cfg.algo.reward_scale, cfg.algo.kl = Rewards.turn, 1.0, KlPlace.none
    turn = Turn((1,), (4, 4), (-1.0, -1.0), "", "", Finish.STOP, 1.0, "X", 0)
    first = replace(_episodes()[0], turns=(turn, replace(turn, reward=3.0)), group=0)
    second = replace(first, turns=(replace(turn, reward=2.0),))
    credit, _ = assign_credit([first, second], {POLICY: torch.full((6,), -1.0)}, cfg)
    torch.testing.assert_close(credit.advantages_N, torch.tensor([0.0, 0, 1, 1, 0, 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [RolloutIS.truncate, RolloutIS.mask])
@pytest.mark.parametrize("name", [AlgoName.ppo, AlgoName.rloo, AlgoName.gspo])
def test_rollout_is_weights_multiply_the_surrogate(name: AlgoName, kind: RolloutIS) -> None:
    """In the unit of the ratio: tokens, a whole episode's product, its geometric mean. With equal log-probs: 1."""
    cfg, episodes = _config(name), _episodes()
    cfg.algo.rollout_is, cfg.algo.rollout_is_cap = kind, 1.5
    numbers = Numbers(episodes)
    numbers.old = torch.tensor([x for t in episodes for turn in t.turns for x in turn.logprobs])
    credit, metrics = numbers.credit(episodes, cfg)
    assert torch.equal(credit.rollout_is_weights_N, torch.ones(len(numbers.old)))
    assert metrics["rollout_is/capped"] == 0.0
    gaps = 0.6 * torch.randn(len(numbers.old), generator=torch.Generator().manual_seed(4))
    numbers.old = numbers.old + gaps
    credit, _ = numbers.credit(episodes, cfg)
    expected = []
    for part in gaps.split([t.answer_tokens for t in episodes]):
        unit = {AlgoName.ppo: part, AlgoName.rloo: part.sum().expand(len(part))}.get(
            name, part.mean().expand(len(part))
        )
        expected += [w if w <= 1.5 else 1.5 for w in unit.exp().tolist()]
    weights = torch.tensor(expected)
    if kind is RolloutIS.mask:
        weights = torch.where((weights < 1.5) & (weights >= 1 / 1.5), weights, 0.0)
    torch.testing.assert_close(credit.rollout_is_weights_N, weights, rtol=1e-4, atol=1e-5)
    with_weights = replace(credit, advantages_N=credit.advantages_N * weights)
    plain = replace(with_weights, rollout_is_weights_N=torch.ones(len(weights)))
    slots = torch.arange(len(weights))
    everyone = range(len(episodes))
    _equal(numbers.loss(credit, cfg, slots, everyone), numbers.loss(plain, cfg, slots, everyone), numbers)


@pytest.mark.parametrize("estimator", [KlEstimator.k2, KlEstimator.k3])
@pytest.mark.parametrize("name", [AlgoName.ppo, AlgoName.gspo, AlgoName.cispo])
def test_a_penalty_in_the_loss_goes_with_every_surrogate(name: AlgoName, estimator: KlEstimator) -> None:
    cfg, episodes = _config(name), _episodes()
    numbers = Numbers(episodes)
    cfg.algo.kl = KlPlace.none
    without = _whole(numbers, episodes, cfg)
    cfg.algo.kl, cfg.algo.kl_estimator, cfg.algo.kl_coef = KlPlace.loss, estimator, 0.3
    gap = numbers.reference.float() - numbers.new
    kl = gap.square() / 2 if estimator is KlEstimator.k2 else gap.exp() - 1 - gap
    means = [part.mean() for part in kl.split([t.answer_tokens for t in episodes])]
    mean = torch.stack(means).mean() if name is AlgoName.gspo else kl.mean()
    _equal(_whole(numbers, episodes, cfg), without + 0.3 * mean, numbers)


ARMS, BEST = 6, 4


@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_solves_a_bandit(name: AlgoName) -> None:
    """Six arms, one token, eight pulls a group; arm 4 pays, and a teacher pulls it. Logits and one value learn through
    credit and loss."""
    torch.manual_seed(0)
    cfg = _config(name)
    cfg.algo.kl = KlPlace.none
    logits, value = torch.zeros(ARMS, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.1)
    teacher = torch.log_softmax(torch.nn.functional.one_hot(torch.tensor(BEST), ARMS) * 5.0, 0)
    for _ in range(60):
        table = torch.log_softmax(logits, 0)
        arms = torch.multinomial(table.exp().detach(), 32, replacement=True)
        old = table.detach()[arms]
        pulls = [_pull(int(a), i, float(x)) for i, (a, x) in enumerate(zip(arms, old, strict=True))]
        scores = {POLICY: old, CRITIC: value.detach().expand(32), TEACHER: teacher[arms]}
        credit, _ = assign_credit(pulls, {n: scores[n] for n in objective.roles_to_compute(cfg)}, cfg)
        if credit.pairs_P2 is not None:
            known = {POLICY: table.detach()[arms], REFERENCE: torch.full((32,), 1 / ARMS).log()}
            credit, _ = with_preferences(credit, range(32), known, cfg.algo.dpo_beta)
        roles = objective.Outputs(table[arms], torch.zeros(32))
        if TABLE[cfg.algo.name].critic:
            roles = roles._replace(values_N=value.expand(32))
        loss, _ = objective.minibatch_loss(credit, range(32), cfg)(roles, torch.arange(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.softmax(logits, 0)[BEST] > 0.9


def _pull(arm: int, i: int, logprob: float) -> Trajectory:
    turn = Turn((1,), (arm,), (logprob,), "", "", Finish.STOP, 5.0 if arm == BEST else 0.0, "PULLED", 0)
    return Trajectory(
        "e", "v", "train", "i", 0, i, i // 8, i, (turn,), Ending.TERMINATED, success=arm == BEST
    )
