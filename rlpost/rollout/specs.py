"""The episodes to play: their instances and their random seeds, as a function of their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlpost.config.schema import Config
from rlpost.seeds import derive
from rlpost.types import EpisodeSpec


def training_specs(cfg: Config, iteration: int) -> list[EpisodeSpec]:
    """The batch of an iteration: groups of `group_size` episodes that share an instance."""
    return group_specs(cfg, iteration, range(cfg.rollout.episodes // cfg.rollout.group_size))


def group_specs(cfg: Config, iteration: int, groups: Sequence[int]) -> list[EpisodeSpec]:
    """The episodes of an iteration's groups with the given numbers. Every number has its own instance and seeds."""
    size = cfg.rollout.group_size
    return [
        EpisodeSpec(
            variant=cfg.train_variant,
            split="train",
            iteration=iteration,
            episode=episode,
            group=group,
            env_seed=derive(cfg.seed, "instance", iteration, group),
            seed=derive(cfg.seed, "dice", iteration, episode),
        )
        for group in groups
        for episode in range(group * size, (group + 1) * size)
    ]


@dataclass(frozen=True)
class Instance:
    """An evaluation's instance: the number that seeds it, and its name if the environment is reset to it by name."""

    number: int
    name: str | None = None


def evaluation_specs(
    cfg: Config, variant: str, instances: Iterable[Instance], samples: int = 1
) -> list[EpisodeSpec]:
    """Fixed instances of a variant (rlpost/rollout/instances.py): the same for every run and adapter.

    Each is played `samples` times, as a group with the instance's number, with different seeds.
    """
    return [
        EpisodeSpec(
            variant=variant,
            split="eval",
            iteration=-1,
            episode=instance.number * samples + sample,
            group=instance.number,
            env_seed=evaluation_env_seed(cfg.eval.seed, variant, instance.number),
            seed=_evaluation_dice(cfg.eval.seed, variant, instance.number, sample),
            instance=instance.name,
        )
        for instance in instances
        for sample in range(samples)
    ]


def evaluation_env_seed(seed: int, variant: str, number: int) -> int:
    """The seed with which the environment is reset for an evaluation's instance (its group), given eval.seed `seed`."""
    return derive(seed, "instance", variant, number)


def _evaluation_dice(seed: int, variant: str, number: int, sample: int) -> int:
    """The seed of a sample, which does not depend on how many are drawn. Single-sample evaluations use sample 0."""
    if sample == 0:
        return derive(seed, "dice", variant, number)
    return derive(seed, "dice of sample", sample, variant, number)
