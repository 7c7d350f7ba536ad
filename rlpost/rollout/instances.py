"""The episodes that an evaluation plays: different instances, if an environment knows how many it has.

Seeds name instances, and random draws repeat some: 256 draws from 3 rows are 256 episodes but 3 trials, and 192 deals
of GeneralPoints were 96 problems. An environment that is `rlpost.envs.base.Finite` reports its number of instances, and
the first episode of each instance is kept, with its number. An episode of one number is the same in every run, so a
record can be replayed like any other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial

from rlpost.config.schema import Config
from rlpost.envs.base import Finite
from rlpost.envs.caches import remembered
from rlpost.rollout.env_threads import living
from rlpost.rollout.episode import Env
from rlpost.rollout.specs import evaluation_env_seed

_MOST_DRAWS = 50  # draws per instance; an instance that is too rare to appear in them is not played


def evaluation_episodes(cfg: Config, variant: str) -> Sequence[int]:
    """The numbers of the episodes to play: eval.episodes of them, or fewer if there are fewer instances.

    Raises RolloutError if the environment exceeds rollout.env_timeout_s.
    """
    timeout_s = cfg.rollout.env_timeout_s
    args = json.dumps(cfg.env_args, sort_keys=True)
    return _episodes(cfg.env, args, cfg.eval.seed, variant, cfg.eval.episodes, timeout_s)


# Cached, because each stage and decoding of a run asks again. The result depends on the arguments alone.
@remembered(maxsize=256)
def _episodes(
    env_name: str, args: str, seed: int, variant: str, most: int, timeout_s: float
) -> Sequence[int]:
    with living(env_name, json.loads(args), timeout_s, "asked for its instances") as (env, ask):
        # Not `unwrapped`: a wrapper may split the instances, and then the inner count is not that of the split.
        count = ask(partial(env.instances, variant, "eval")) if isinstance(env, Finite) else None
        return range(most) if count is None else _different(env, ask, seed, variant, min(most, count), count)


def _different(
    env: Env, ask: Callable[[Callable[[], str]], str], seed: int, variant: str, wanted: int, count: int
) -> list[int]:
    """The numbers of the first episodes of `wanted` different instances."""

    def instance(number: int) -> str:
        options = {"variant": variant, "split": "eval"}
        _, info = env.reset(seed=evaluation_env_seed(seed, variant, number), options=options)
        return str(info["instance"])

    first: dict[str, int] = {}
    for number in range(_MOST_DRAWS * count):
        first.setdefault(ask(partial(instance, number)), number)
        if len(first) == wanted:
            break
    return list(first.values())
