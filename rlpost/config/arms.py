"""The table of a comparison's arms. A row says what an arm is, which task its runs have, and which settings it sets.

    name ─▶ Arm ─▶ the defaults of its algorithm, then `settings` ─▶ the configuration of its cells

No other module knows an arm by name, except that `sft` is what every RL arm is compared with. This module imports
nothing heavy. docs/comparison.md shows the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlpost.config.presets import TABLE as ALGORITHMS
from rlpost.config.schema import AlgoConfig, AlgoName, KlPlace, Task

SFT = "sft"  # plain supervised fine-tuning
# Endings of the names of an algorithm's variations.
NO_KL, OFFLINE, SHUFFLED, RANDOM = "no_kl", "offline", "shuffled", "random"


@dataclass(frozen=True)
class Arm:
    """One row. A control asks whether a part of the method matters: it never sets the budget of the other arms."""

    label: str  # its name in a sentence
    summary: str  # what it is
    source: str
    task: Task  # sft or rl
    # The algorithm of an arm with task=rl. None: that of the arm that sets the budget, or ppo if there is no other.
    algorithm: AlgoName | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)  # by dotted key; they define the arm
    control: bool = False
    varies: str | None = None  # the arm from which it differs by `settings` alone

    @property
    def supervised(self) -> bool:
        return self.task is Task.sft

    @property
    def may_set_budget(self) -> bool:
        return not self.supervised and not self.control


def _algorithms() -> Iterator[tuple[str, Arm]]:
    for name, algorithm in ALGORITHMS.items():
        summary = f"RL with `algo={name.name}`"
        yield name.name, Arm(name.name.upper(), summary, algorithm.source, Task.rl, name)


def _without_kl() -> Iterator[tuple[str, Arm]]:
    """Each algorithm that has a KL penalty by default, without it."""
    for name, algorithm in ALGORITHMS.items():
        if algorithm.defaults.get("algo.kl", AlgoConfig().kl.name) != KlPlace.none.name:
            yield _variation(
                name,
                NO_KL,
                "without KL",
                "without a KL penalty: nothing holds the policy near its start",
                "arXiv 2510.18874",
                {"algo.kl": "none"},
            )


def _offline() -> Iterator[tuple[str, Arm]]:
    """Algorithms on answers of the policy that they start from, which separates what is learnt from from how."""
    to_start = {"rollout.policy": "start"}
    of_the_start = "on answers of its start alone (`rollout.policy=start`)"
    for name in (AlgoName.rft, AlgoName.dpo):
        yield _variation(name, OFFLINE, "offline", of_the_start, "arXiv 2510.18874", to_start)
    # The ratio is to the start, which sampled the answers; a KL penalty would need samples of the policy.
    settings = {**to_start, "algo.old_logprobs": "engine", "algo.kl": "none"}
    yield _variation(AlgoName.grpo, OFFLINE, "offline", of_the_start, "arXiv 2510.18874", settings)


def _controls() -> Iterator[tuple[str, Arm]]:
    """Each algorithm that reads rewards, with rewards that say nothing about an episode's own answers."""
    for name in (name for name, algorithm in ALGORITHMS.items() if algorithm.reads_rewards):
        yield _variation(
            name,
            SHUFFLED,
            "with shuffled rewards",
            "on rewards that are permuted over the batch (`algo.reward_control=shuffled`)",
            "a permutation test's null, after arXiv 2506.10947",
            {"algo.reward_control": "shuffled"},
            control=True,
        )
        yield _variation(
            name,
            RANDOM,
            "with random rewards",
            "on rewards of 1 or 0 at random, as often 1 as the batch succeeds (`algo.reward_control=random`)",
            "arXiv 2506.10947",
            {"algo.reward_control": "random"},
            control=True,
        )


def _variation(
    name: AlgoName,
    ending: str,
    label: str,
    summary: str,
    source: str,
    settings: Mapping[str, Any],
    control: bool = False,
) -> tuple[str, Arm]:
    plain, summary = name.name, f"`{name.name}` {summary}"
    row = Arm(f"{plain.upper()} {label}", summary, source, Task.rl, name, settings, control, varies=plain)
    return f"{plain}_{ending}", row


TABLE: Mapping[str, Arm] = {
    SFT: Arm("SFT", "supervised fine-tuning on the expert's answers", "arXiv 2501.17161", Task.sft),
    "dft": Arm(
        "DFT",
        "SFT whose tokens count by their own probability (`sft.loss=dft`)",
        "arXiv 2508.05629",
        Task.sft,
        settings={"sft.loss": "dft"},
        varies=SFT,
    ),
    **dict(_algorithms()),
    "sft_mixed": Arm(
        "RL with expert answers",
        "the algorithm of the arm that sets the budget, with SFT in each of its steps (`algo.expert_coef=1`)",
        "arXiv 2508.11408",
        Task.rl,
        settings={"algo.expert_coef": 1.0},
    ),
    **dict(_without_kl()),
    **dict(_offline()),
    **dict(_controls()),
}
