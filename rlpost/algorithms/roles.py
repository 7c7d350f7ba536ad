"""The roles that models have in an algorithm.

Policy, critic and reference are weights of one form over one base. The teacher may be an adapter of another form, or
another model.
"""

from __future__ import annotations

from rlpost.config.presets import TABLE, Estimator
from rlpost.config.schema import Config, KlPlace, Reference, Task

ROLES = POLICY, CRITIC, REFERENCE = "policy", "critic", "reference"
TEACHER = "teacher"


def roles_for(cfg: Config) -> tuple[str, ...]:
    """The roles that need weights of the policy's form in the task. If the base is the reference, it needs none."""
    algo, learns_from_rewards = cfg.algo, cfg.task is Task.rl
    has_reference = algo.kl is not KlPlace.none or TABLE[algo.name].estimator is Estimator.pairs
    keeps_start = has_reference and algo.reference is Reference.start
    critic = (CRITIC,) if learns_from_rewards and TABLE[algo.name].critic else ()
    reference = (REFERENCE,) if learns_from_rewards and keeps_start else ()
    return (POLICY, *critic, *reference)
