"""What a rank needs of its configuration."""

from __future__ import annotations

import pytest

from rlpost.algorithms.roles import CRITIC, POLICY, REFERENCE, roles_for
from rlpost.config.schema import AlgoName, Config, KlPlace, Reference, Task


@pytest.mark.parametrize(
    ("task", "algo", "kl", "reference", "expected"),
    [
        (Task.rl, AlgoName.ppo, KlPlace.reward, Reference.start, (POLICY, CRITIC, REFERENCE)),
        (Task.rl, AlgoName.ppo_turn, KlPlace.none, Reference.start, (POLICY, CRITIC)),
        (Task.rl, AlgoName.grpo, KlPlace.loss, Reference.start, (POLICY, REFERENCE)),
        (Task.rl, AlgoName.grpo, KlPlace.loss, Reference.base, (POLICY,)),
        (Task.rl, AlgoName.opd, KlPlace.none, Reference.start, (POLICY,)),
        (Task.sft, AlgoName.ppo, KlPlace.reward, Reference.start, (POLICY,)),
    ],
)
def test_adapters_are_those_that_learn_or_are_compared_with(
    task: Task, algo: AlgoName, kl: KlPlace, reference: Reference, expected: tuple[str, ...]
) -> None:
    cfg = Config(task=task)
    cfg.algo.name, cfg.algo.kl, cfg.algo.reference = algo, kl, reference
    assert roles_for(cfg) == expected
