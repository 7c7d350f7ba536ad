"""Corrections for the policy that played: against the peers' formulas, by hand, and what must hold for every batch."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlpost.algorithms import objective, trust_region
from rlpost.algorithms.layout import TokenLayout
from rlpost.algorithms.losses import engine_gap
from rlpost.algorithms.roles import POLICY
from rlpost.algorithms.rollout_correction import bounded, effective_share, surrogate_weights
from rlpost.config.presets import TABLE
from rlpost.config.rollout_correction import corrects, importance_weights
from rlpost.config.schema import (
    AlgoName,
    Config,
    KlPlace,
    OldLogprobs,
    RolloutIS,
    RolloutLevel,
    RolloutReject,
    TrustRegion,
)
from tests.numerics import peers
from tests.numerics.test_algorithms import Numbers, _config, _episodes

SEEDS = range(5)
LEVELS = tuple(RolloutLevel)


@functools.cache
def _plain() -> Config:
    cfg = _config(AlgoName.grpo)
    cfg.algo.kl = KlPlace.none
    return cfg


def _with(**settings: Any) -> Config:
    cfg = copy.deepcopy(_plain())
    for name, value in settings.items():
        setattr(cfg.algo, name, value)
    return cfg


class Ragged:
    """Sequences of several turns, of random lengths, with log-probs of engine and learner."""

    def __init__(self, seed: int, spread: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(1, 6, (6, 3), generator=generator).tolist()
        self.turns = [row[: 1 + i % 3] for i, row in enumerate(lengths)]
        self.layout = TokenLayout.of(
            self.turns, [i // 2 for i in range(6)], [[0] * len(t) for t in self.turns]
        )
        count = sum(map(sum, self.turns))
        self.engine = -2.0 + 0.3 * torch.randn(count, generator=generator)
        self.old = self.engine + spread * torch.randn(count, generator=generator)
        new = self.old + 0.4 * torch.randn(count, generator=generator)
        self.new = new.double().requires_grad_()
        self.advantages = torch.randn(count, generator=generator)

    @property
    def sequences(self) -> list[list[peers.Token]]:
        parts = (self.engine, self.old, self.advantages)
        rows = zip(*(part.tolist() for part in parts), self.new, strict=True)
        tokens = iter([peers.Token(engine, old, new, advantage) for engine, old, advantage, new in rows])
        return [list(itertools.islice(tokens, sum(turns))) for turns in self.turns]

    def weights(self, cfg: Config) -> tuple[Tensor, dict[str, Tensor]]:
        return surrogate_weights(self.old, self.engine, self.layout, cfg)


def _close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_verls_weights_and_effective_sample_size(seed: int, level: str) -> None:
    batch, own = Ragged(seed), RolloutLevel[level]
    cfg = _with(rollout_is=RolloutIS.truncate, rollout_is_level=own, rollout_is_cap=1.3)
    found, metrics = batch.weights(cfg)
    expected = peers.verl_weights(batch.sequences, level, 1.3)
    _close(found, expected)
    assert metrics["rollout_is/ess"].item() == pytest.approx(peers.verl_ess(expected), rel=1e-4)
    cfg = _with(rollout_is=RolloutIS.mask, rollout_is_level=own, rollout_is_cap=1.3, rollout_is_floor=0.6)
    _close(batch.weights(cfg)[0], peers.verl_weights(batch.sequences, level, (0.6, 1.3)))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("reject", "mode"),
    [(RolloutReject.sequence, "seq_sum_k1"), (RolloutReject.geometric, "seq_mean_k1")],
)
def test_verls_rejection_alone_and_with_weights(seed: int, reject: RolloutReject, mode: str) -> None:
    batch = Ragged(seed)
    bounds = {"rollout_reject": reject, "rollout_reject_cap": 1.2, "rollout_reject_floor": 0.7}
    kept = peers.verl_kept(batch.sequences, mode, (0.7, 1.2))
    found, metrics = batch.weights(_with(rollout_is=RolloutIS.none, **bounds))
    _close(found, kept)
    firsts = [kept[n] for n in itertools.accumulate([0, *map(sum, batch.turns[:-1])])]
    assert metrics["rollout_is/rejected"].item() == pytest.approx(1 - sum(firsts) / len(firsts))
    found, _ = batch.weights(_with(rollout_is=RolloutIS.truncate, rollout_is_cap=1.5, **bounds))
    weights = peers.verl_weights(batch.sequences, "token", 1.5)
    _close(found, [a * b for a, b in zip(weights, kept, strict=True)])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_trls_modes(seed: int, mode: str) -> None:
    level, _, how = mode.partition("_")
    cfg = _with(
        rollout_is=RolloutIS[how],
        rollout_is_level=RolloutLevel[level],
        rollout_is_cap=1.4,
        rollout_is_floor=0.0,
    )
    batch = Ragged(seed)
    _close(batch.weights(cfg)[0], peers.trl_weights(batch.sequences, mode, 1.4))


class Update:
    """The first minibatch of an update on `_episodes`, as the peers' tokens and as ours."""

    def __init__(self, cfg: Config, spread: float) -> None:
        self.cfg, self.episodes = cfg, _episodes()
        self.numbers = Numbers(self.episodes, spread)
        sampled = torch.tensor([x for t in self.episodes for turn in t.turns for x in turn.logprobs])
        gaps = 0.4 * torch.randn(len(sampled), generator=torch.Generator().manual_seed(4))
        moved = (self.numbers.new - self.numbers.old).detach()
        self.numbers.old = (sampled + gaps).double()
        self.numbers.new = (self.numbers.old.float() + moved).requires_grad_()
        self.credit, _ = self.numbers.credit(self.episodes, cfg)
        old = sampled if cfg.algo.old_logprobs is OldLogprobs.engine else self.numbers.old.float()
        parts = (sampled, old, self.numbers.new, self.credit.advantages_N)
        self.batch = [
            [
                peers.Token(e.item(), o.item(), n, a.item())
                for e, o, n, a in zip(*(part.split(lengths)[i] for part in parts), strict=True)
            ]
            for lengths in [[t.answer_tokens for t in self.episodes]]
            for i in range(len(self.episodes))
        ]

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.numbers.new, retain_graph=True)[0]

    def ours(self) -> Tensor:
        slots = torch.arange(len(self.numbers.old))
        return self.numbers.loss(self.credit, self.cfg, slots, range(len(self.episodes)))

    def check(self, expected: Tensor) -> None:
        assert self.gradient(expected).abs().max() > 1e-3
        torch.testing.assert_close(self.gradient(self.ours()), self.gradient(expected), rtol=1e-4, atol=1e-6)


def _over_tokens(**settings: Any) -> Config:
    """DAPO's mean over all tokens, which AReaL and verl's DPPO take; its other parts off."""
    cfg = _config(AlgoName.dapo)
    cfg.algo.clip_high, cfg.algo.overlong_buffer = None, 0
    for name, value in settings.items():
        setattr(cfg.algo, name, value)
    return cfg


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask"])
def test_areals_decoupled_objective(mode: str) -> None:
    """Three policies: the one now, the one at the update's start, which the clip is around, and the one that played."""
    kind = RolloutIS[mode.removeprefix("token_")]
    cfg = _over_tokens(rollout_is=kind, rollout_is_cap=1.5, rollout_is_floor=0.0, clip=0.2)
    update = Update(cfg, spread=0.5)
    expected = peers.areal_loss(update.batch, mode, 1.5, 0.2)
    torch.testing.assert_close(update.ours().double(), expected.double(), rtol=1e-4, atol=1e-6)
    update.check(expected)


def test_prime_rls_masked_ratio_at_the_first_step() -> None:
    """The ratio now / engine is our weight there: the update has not moved the policy yet."""
    cfg = _over_tokens(rollout_is=RolloutIS.mask, rollout_is_cap=1.5, rollout_is_floor=0.8)
    update = Update(cfg, spread=0.0)
    tokens = sum(map(len, update.batch))
    update.check(peers.prime_rl_loss(update.batch, (0.8, 1.5)) / tokens)


@pytest.mark.parametrize("old", OldLogprobs)
@pytest.mark.parametrize("region", [TrustRegion.tv, TrustRegion.kl])
def test_dppo_as_in_verl(region: TrustRegion, old: OldLogprobs) -> None:
    """With cispo, whose clip truncates a weight without gradient. The paper's old policy is the engine's."""
    cfg = _config(AlgoName.cispo)
    cfg.algo.clip_high, cfg.algo.old_logprobs = 4.0, old
    cfg.algo.trust_region, cfg.algo.max_divergence = region, 0.02
    update = Update(cfg, spread=1.0)
    expected = peers.dppo_loss(update.batch, region.name, 0.02, 5.0)
    torch.testing.assert_close(update.ours().double(), expected.double(), rtol=1e-4, atol=1e-6)
    update.check(expected)
    tokens = [token for sequence in update.batch for token in sequence]
    valid = [peers.dppo_valid(t.old, t.new.item(), t.advantage, region.name, 0.02) for t in tokens]
    assert 0.05 < sum(valid) / len(valid) < 0.95


@pytest.mark.parametrize("region", [TrustRegion.tv, TrustRegion.kl])
def test_a_trust_region_takes_the_clips_place(region: TrustRegion) -> None:
    """The gradient of grpo: ratio x advantage of the tokens within it, however large their ratio; else 0."""
    cfg = _over_tokens(trust_region=region, max_divergence=0.05, clip=0.01)
    update = Update(cfg, spread=1.0)
    terms = [
        -(t.new - t.old).exp() * t.advantage
        for sequence in update.batch
        for t in sequence
        if peers.dppo_valid(t.old, t.new.item(), t.advantage, region.name, 0.05)
    ]
    tokens = sum(map(len, update.batch))
    update.check(torch.stack(terms).sum() / tokens)
    outputs = objective.Outputs(update.numbers.new, torch.ones(tokens))
    loss_of = objective.minibatch_loss(update.credit, range(len(update.episodes)), cfg)
    metrics = loss_of(outputs, torch.arange(tokens))[1]
    assert metrics["outside_fraction"].item() == pytest.approx(1 - len(terms) / tokens)
    assert metrics["clip_fraction"].item() == 0.0


def test_every_level_by_hand() -> None:
    """Learner over engine 3, 1/2 | 2 in one sequence of two turns, 1/4 in another."""
    layout = TokenLayout.of([[2, 1], [1]], [0, 1], [[0, 0], [0]])
    old = torch.tensor([3.0, 0.5, 2.0, 0.25]).log()
    expected = {
        RolloutLevel.token: [3.0, 0.5, 2.0, 0.25],
        RolloutLevel.turn: [1.5, 1.5, 2.0, 0.25],
        RolloutLevel.sequence: [3.0, 3.0, 3.0, 0.25],
        RolloutLevel.geometric: [3 ** (1 / 3)] * 3 + [0.25],
    }
    for level, ratios in expected.items():
        cfg = _with(rollout_is=RolloutIS.truncate, rollout_is_level=level, rollout_is_cap=2.5)
        found, metrics = surrogate_weights(old, torch.zeros(4), layout, cfg)
        _close(found, [min(ratio, 2.5) for ratio in ratios])
        assert metrics["rollout_is/weight_max"].item() == pytest.approx(max(ratios), rel=1e-5)
        cfg.algo.rollout_is_floor = 0.4
        _close(
            surrogate_weights(old, torch.zeros(4), layout, cfg)[0], [min(max(r, 0.4), 2.5) for r in ratios]
        )
        cfg.algo.rollout_is = RolloutIS.mask
        masked = [r if 0.4 <= r <= 2.5 else 0.0 for r in ratios]
        _close(surrogate_weights(old, torch.zeros(4), layout, cfg)[0], masked)


def test_weights_by_hand() -> None:
    """Learner over engine 3, 1.5, 0.4 with cap 2: truncated to 2, 1.5, 0.4; masked to 0, 1.5, 0."""
    log_ratio = torch.tensor([3.0, 1.5, 0.4]).log()
    kept, metrics = bounded(log_ratio, RolloutIS.truncate, (0.0, 2.0))
    torch.testing.assert_close(kept, torch.tensor([2.0, 1.5, 0.4]))
    assert metrics["rollout_is/capped"].item() == pytest.approx(1 / 3)
    assert metrics["rollout_is/weight_mean"].item() == pytest.approx(4.9 / 3)
    assert metrics["rollout_is/weight_max"].item() == pytest.approx(3.0)
    kept, metrics = bounded(log_ratio, RolloutIS.mask, (0.5, 2.0))
    torch.testing.assert_close(kept, torch.tensor([0.0, 1.5, 0.0]))
    assert metrics["rollout_is/capped"].item() == pytest.approx(2 / 3)


def test_effective_share_by_hand() -> None:
    """Weights 1, 1, 2, 0: (1 + 1 + 2)^2 / (4 x 6) = 2/3. Equal weights: 1. None left: 0."""
    assert effective_share(torch.tensor([1.0, 1.0, 2.0, 0.0])).item() == pytest.approx(2 / 3)
    assert effective_share(torch.full((5,), 0.3)).item() == pytest.approx(1.0)
    assert effective_share(torch.zeros(3)).item() == 0.0


def test_divergence_of_engine_and_learner_by_hand() -> None:
    """Engine 1/2, 1/4 and learner 1/4, 1/2: k1 is 0, k3 the mean of -1/2 + log 2 and 1 - log 2."""
    metrics = engine_gap(torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log(), 2)
    assert metrics["kl_engine"].item() == pytest.approx(0.0, abs=1e-6)
    assert metrics["kl_engine_k3"].item() == pytest.approx(0.25)


def test_divergences_of_a_token_by_hand() -> None:
    old, new = torch.tensor([0.5, 0.2, 1.0, 1.0]).log(), torch.tensor([0.75, 0.2, 1.0, 0.5]).log()
    torch.testing.assert_close(trust_region.total_variation(old, new), torch.tensor([0.25, 0.0, 0.0, 0.5]))
    found = trust_region.binary_kl(old, new)
    torch.testing.assert_close(
        found,
        torch.tensor([0.5 * math.log(2 / 3) + 0.5 * math.log(2), 0.0, 0.0, math.log(2)]),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", [RolloutIS.truncate, RolloutIS.mask])
@pytest.mark.parametrize("far", [-1e4, -200.0, 200.0, 1e4])
def test_far_weights_are_finite(kind: RolloutIS, far: float) -> None:
    kept, metrics = bounded(torch.tensor([far]), kind, (0.5 if kind is RolloutIS.mask else 0.0, 2.0))
    assert kept.item() == (2.0 if far > 0 and kind is RolloutIS.truncate else pytest.approx(0.0))
    assert torch.isfinite(torch.stack(list(metrics.values()))).all()


CORRECTIONS = st.fixed_dictionaries(
    {
        "rollout_is": st.sampled_from([RolloutIS.none, RolloutIS.truncate, RolloutIS.mask]),
        "rollout_is_level": st.sampled_from(LEVELS),
        "rollout_is_cap": st.floats(1.01, 5.0),
        "rollout_is_floor": st.one_of(st.none(), st.floats(0.0, 1.0)),
        "rollout_reject": st.sampled_from(RolloutReject),
        "rollout_reject_cap": st.floats(1.01, 3.0),
        "rollout_reject_floor": st.one_of(st.none(), st.floats(0.0, 0.99)),
    }
)


@given(CORRECTIONS, st.integers(0, 50))
def test_equal_policies_are_left_alone(settings: dict[str, Any], seed: int) -> None:
    batch = Ragged(seed, spread=0.0)
    weights, metrics = batch.weights(_with(**settings))
    assert torch.equal(weights, torch.ones_like(weights))
    assert metrics["rollout_is/ess"].item() == pytest.approx(1.0)
    assert metrics.get("rollout_is/rejected", torch.zeros(())).item() == 0.0


@given(CORRECTIONS, st.integers(0, 50))
def test_bounds_hold_and_masks_only_remove(settings: dict[str, Any], seed: int) -> None:
    """A mask, and a rejection, leave a token's term as it was or take it away; nobody else's grows."""
    batch, cfg = Ragged(seed), _with(**settings)
    weights = batch.weights(cfg)[0]
    kind, cap = cfg.algo.rollout_is, cfg.algo.rollout_is_cap
    none_rejected = _with(**{**settings, "rollout_reject": RolloutReject.none})
    before = batch.weights(none_rejected)[0] if corrects(none_rejected) else torch.ones_like(weights)
    assert (torch.isclose(weights, before) | (weights == 0)).all()
    if kind is not RolloutIS.none:
        assert weights.max() <= cap * (1 + 1e-6)
        free = _with(**{**settings, "rollout_is": RolloutIS.truncate, "rollout_is_cap": 1e9})
        free.algo.rollout_is_floor, free.algo.rollout_reject = 0.0, RolloutReject.none
        plain = batch.weights(free)[0]
        floor = cfg.algo.rollout_is_floor
        if kind is RolloutIS.mask:
            floor = 1 / cap if floor is None else floor
            assert (torch.isclose(weights, plain) | (weights == 0)).all()
            assert (weights[weights > 0] >= floor * (1 - 1e-6)).all()
        elif floor is not None and cfg.algo.rollout_reject is RolloutReject.none:
            assert weights.min() >= floor * (1 - 1e-6)


@given(CORRECTIONS, st.integers(0, 50))
def test_levels_are_one_for_sequences_of_one_token(settings: dict[str, Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    engine, old = torch.randn(7, generator=generator), torch.randn(7, generator=generator)
    layout = TokenLayout.of([[1]] * 7, list(range(7)), [[0]] * 7)
    every = [
        surrogate_weights(old, engine, layout, _with(**{**settings, "rollout_is_level": level}))[0]
        for level in LEVELS
    ]
    assert all(torch.equal(weights, every[0]) for weights in every)


@given(st.integers(0, 50), st.sampled_from([TrustRegion.tv, TrustRegion.kl]), st.floats(0.001, 0.5))
def test_a_trust_region_only_stops_steps_that_lead_away(seed: int, region: TrustRegion, most: float) -> None:
    batch = Ragged(seed)
    new = batch.new.detach().float()
    away = trust_region.leaving(batch.old, new, batch.advantages, region, most)
    assert (batch.advantages * (new - batch.old))[away].min() > 0 if away.any() else True
    wider = trust_region.leaving(batch.old, new, batch.advantages, region, 2 * most)
    assert not (wider & ~away).any()
    assert not trust_region.leaving(batch.old, batch.old, batch.advantages, region, most).any()


@pytest.mark.parametrize("name", sorted(AlgoName, key=lambda name: name.name))
def test_without_stale_answers_nothing_is_corrected(name: AlgoName) -> None:
    """The default of a run whose engines play the current policy: the passes and the batch are those of `none`."""
    auto, none = _config(name), _config(name)
    none.algo.rollout_is = RolloutIS.none
    assert (auto.algo.rollout_is, corrects(auto)) == (RolloutIS.auto, False)
    assert objective.roles_to_compute(auto) == objective.roles_to_compute(none)
    credit, metrics = Numbers(_episodes()).credit(_episodes(), auto)
    assert torch.equal(credit.rollout_is_weights_N, torch.ones_like(credit.sampling_N))
    assert not any(key.startswith("rollout_is/") for key in metrics)


@pytest.mark.parametrize("name", sorted(AlgoName, key=lambda name: name.name))
def test_stale_answers_are_weighted_unless_told_otherwise(name: AlgoName) -> None:
    cfg = _config(name)
    cfg.rollout.lag, cfg.algo.epochs, cfg.algo.minibatches = (
        2,
        1,
        1,
    )  # one step needs no pass before it otherwise
    has_ratio = TABLE[name].has_ratio
    assert importance_weights(cfg) is (RolloutIS.truncate if has_ratio else RolloutIS.none)
    assert not has_ratio or POLICY in objective.roles_to_compute(cfg)
    told = replace(cfg, algo=replace(cfg.algo, rollout_is=RolloutIS.none))
    assert not corrects(told)
    coupled = replace(cfg, algo=replace(cfg.algo, old_logprobs=OldLogprobs.engine))
    assert not corrects(coupled)
