"""Replays recorded episodes from their own answers, without a model, in order to draw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import gymnasium
from omegaconf import DictConfig, OmegaConf

from rlpost.config.schema import Instances, RolloutConfig
from rlpost.config.trust import named_code
from rlpost.envs import registry
from rlpost.envs.base import Enumerated, Pictured
from rlpost.pages.images import Image
from rlpost.pages.sample_episodes import Deal
from rlpost.rollout.env_threads import within
from rlpost.rollout.specs import evaluation_env_seed
from rlpost.types import Trajectory


class Gallery:
    """Draws evaluation episodes of one environment, if it has pictures (`rlpost.envs.base.Pictured`).

    An environment may raise anything, and hang: an episode has the deadline of one rollout step. A report must be
    possible without pictures too: `failure` says why there are none, and the environment is not called again after
    that.
    """

    def __init__(
        self,
        env: str,
        env_args: Mapping[str, Any],
        eval_seed: int,
        timeout_s: float,
        all_instances: bool = False,
    ) -> None:
        self._name, self._args, self._eval_seed, self._timeout_s = env, env_args, eval_seed, timeout_s
        self._all_instances = all_instances
        self.failure: str | None = None

    @classmethod
    def of(cls, config: DictConfig, own_code: bool) -> Gallery | None:
        """The gallery for a run with this config.yaml; None if it names no environment.

        Without `own_code`, an environment that is not bundled is not imported; `failure` then says so.
        """
        env, seed = OmegaConf.select(config, "env"), OmegaConf.select(config, "eval.seed")
        if env is None or seed is None:
            return None
        timeout_s = OmegaConf.select(config, "rollout.env_timeout_s", default=RolloutConfig.env_timeout_s)
        every = OmegaConf.select(config, "eval.instances") == Instances.all.value
        gallery = cls(str(env), config.env_args, seed, float(timeout_s), every)
        if not own_code and (code := named_code(str(env), config.env_args)):
            gallery.failure = (
                f"they may need {', '.join(code.values())}, and a report imports no code that a record names, unless"
                " you say so: python -m rlpost.report --own-code FOLDER"
            )
        return gallery

    def illustrated(self, deal: Deal) -> Deal:
        """The deal with pictures of the ends of its episodes, as far as they can be drawn."""
        drawn = {policy: self._drawn(episode) for policy, episode in deal.played.items()}
        pictures = {policy: Image(svg, _alt(deal, policy)) for policy, svg in drawn.items() if svg}
        return replace(deal, pictures=pictures)

    def _drawn(self, episode: Trajectory) -> str | None:
        if self.failure is not None or episode.error is not None:
            return None
        try:
            return within(
                self._timeout_s, f"{self._name} (drawing an episode)", lambda: self._replayed(episode)
            )
        except BaseException as error:  # an environment may call sys.exit
            if isinstance(error, KeyboardInterrupt):
                raise
            self.failure = f"the environment could not draw pictures: {type(error).__name__}: {error}"
            return None

    def _replayed(self, episode: Trajectory) -> str | None:
        """The picture of an episode, from a new environment, which is created and closed in the same thread."""
        env = registry.make(self._name, **self._args)
        try:
            # As in rlpost/rollout/instances.py.
            named = self._all_instances and isinstance(env, Enumerated)
            seed = evaluation_env_seed(self._eval_seed, episode.variant, episode.group)
            return picture(env, episode, seed, named)
        finally:
            env.close()


def _alt(deal: Deal, policy: str) -> str:
    instance = deal.first.instance
    return f"Picture of how {instance} stood at the end, {policy}; the answers below say the same in words."


def picture(
    env: gymnasium.Env[Any, str], episode: Trajectory, env_seed: int, named: bool = False
) -> str | None:
    """The end of an episode as an SVG document; None if the environment draws nothing.

    Also None if `env_seed` no longer gives the recorded instance, for example after a change to the environment.
    `named`: whether the episode's environment was reset to its instance by name.
    """
    pictured = env.unwrapped
    if not isinstance(pictured, Pictured):
        return None
    options = {"variant": episode.variant, "split": episode.split}
    _, info = env.reset(
        seed=env_seed, options={**options, "instance": episode.instance} if named else options
    )
    if str(info["instance"]) != episode.instance:
        return None
    for turn in episode.turns:
        env.step(turn.answer)
    return pictured.picture()
