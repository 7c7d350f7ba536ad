"""Which episodes to play: their instances and their dice, by address."""

from __future__ import annotations

from rlpost.config import Config
from rlpost.seeds import derive
from rlpost.types import EpisodeSpec


def training_specs(cfg: Config, iteration: int) -> list[EpisodeSpec]:
    """An iteration's batch: groups of `group_size` episodes that share an instance."""
    rollout = cfg.rollout
    specs = []
    for episode in range(rollout.episodes):
        group = episode // rollout.group_size
        specs.append(
            EpisodeSpec(
                variant=cfg.train_variant,
                split="train",
                iteration=iteration,
                episode=episode,
                group=group,
                env_seed=derive(cfg.seed, "instance", iteration, group),
                seed=derive(cfg.seed, "dice", iteration, episode),
            )
        )
    return specs


def evaluation_specs(cfg: Config, variant: str) -> list[EpisodeSpec]:
    """The fixed instances of a variant: the same for every run, checkpoint and adapter."""
    return [
        EpisodeSpec(
            variant=variant,
            split="eval",
            iteration=-1,
            episode=episode,
            group=episode,
            env_seed=derive(cfg.eval.seed, "instance", variant, episode),
            seed=derive(cfg.eval.seed, "dice", variant, episode),
        )
        for episode in range(cfg.eval.episodes)
    ]
