"""Which episodes an evaluation plays where an environment has few instances: each instance once.

Seeds name instances, and drawing names some twice: of 3 rows, 256 draws are 256 episodes and 3 trials. An environment
that knows how many it has (`envs.base.Finite`) is asked, and the first episode of each instance is kept by its number.
An episode of that number is the same in every run, so a record is replayed as any other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache, partial

from envs import registry
from envs.base import Finite
from rlpost.config import Config
from rlpost.errors import RolloutError
from rlpost.rollout.env_threads import EnvThread
from rlpost.rollout.episode import Env
from rlpost.rollout.specs import evaluation_env_seed

_MOST_DRAWS = 50  # an instance: one that is as likely as the others is missed with probability e**-50


def evaluation_episodes(cfg: Config, variant: str) -> Sequence[int]:
    """The numbers of the episodes to play: eval.episodes of them, or one an instance where there are no more.

    Raises RolloutError where the environment misses rollout.env_timeout_s, or has not the instances it declares.
    """
    timeout_s = cfg.rollout.env_timeout_s
    args = json.dumps(cfg.env_args, sort_keys=True)
    return _episodes(cfg.env, args, cfg.eval.seed, variant, cfg.eval.episodes, timeout_s)


@lru_cache(
    maxsize=256
)  # of a run's stages and decodings; everything that the answer depends on is an argument
def _episodes(
    env_name: str, args: str, seed: int, variant: str, most: int, timeout_s: float
) -> Sequence[int]:
    found: Sequence[int]
    thread = EnvThread()
    ask = partial(thread.within, timeout_s, f"the environment {env_name} (asked for its instances)")
    try:
        env = ask(partial(registry.make, env_name, **json.loads(args)))
        # Not `unwrapped`: what wraps an environment may split its instances, and then the count is not of the split.
        count = ask(partial(env.instances, variant, "eval")) if isinstance(env, Finite) else None
        found = range(most) if count is None or count > most else _one_each(env, ask, seed, variant, count)
        ask(env.close)
        return found
    finally:
        thread.end()


def _one_each(env: Env, ask: partial[str], seed: int, variant: str, count: int) -> list[int]:
    """The number of the first episode of every instance."""

    def instance(number: int) -> str:
        options = {"variant": variant, "split": "eval"}
        _, info = env.reset(seed=evaluation_env_seed(seed, variant, number), options=options)
        return str(info["instance"])

    first: dict[str, int] = {}
    for number in range(_MOST_DRAWS * count):
        first.setdefault(ask(partial(instance, number)), number)
        if len(first) == count:
            return list(first.values())
    raise RolloutError(
        f"the environment declares {count} instances of {variant} to evaluate on, and {_MOST_DRAWS * count} draws gave"
        f" {len(first)}; mend its method `instances`"
    )
