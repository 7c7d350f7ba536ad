"""The instances that an evaluation plays: different ones, if an environment knows how many it has; or all of them.

Seeds name instances, and random draws repeat some: 256 draws from 3 rows are 256 episodes but 3 trials, and 192 deals
of GeneralPoints were 96 problems. An environment that is `rlpost.envs.base.Finite` reports its number of instances, and
the first episode of each instance is kept, with its number. An episode of one number is the same in every run, so a
record can be replayed like any other.

`eval.instances=all` plays every instance once. Draws show rare ones too late (four eights are one deal in 28,561), so
an environment that is `rlpost.envs.base.Enumerated` is reset to each by its name; in others, whose instances are
equally likely, draws find all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from rlpost.config.schema import Config, Instances
from rlpost.envs.base import Enumerated, Finite
from rlpost.envs.caches import remembered
from rlpost.errors import RolloutError
from rlpost.rollout.env_threads import living
from rlpost.rollout.episode import Env
from rlpost.rollout.specs import Instance, evaluation_env_seed
from rlpost.seeds import derive

_MOST_DRAWS = 50  # draws per instance; an instance that is too rare to appear in them is not played


def evaluation_episodes(cfg: Config, variant: str) -> Sequence[Instance]:
    """The instances to play: eval.episodes of them, or fewer if there are fewer; with eval.instances=all, every one.

    Raises RolloutError if the environment exceeds rollout.env_timeout_s, or if all are wanted and some are not found.
    """
    timeout_s = cfg.rollout.env_timeout_s
    args = json.dumps(cfg.env_args, sort_keys=True)
    most = cfg.eval.episodes if cfg.eval.instances is Instances.drawn else None
    return _episodes(cfg.env, args, cfg.eval.seed, variant, most, timeout_s)


# Cached, because each stage and decoding of a run asks again. The result depends on the arguments alone.
@remembered(maxsize=256)
def _episodes(
    env_name: str, args: str, seed: int, variant: str, most: int | None, timeout_s: float
) -> Sequence[Instance]:
    with living(env_name, json.loads(args), timeout_s, "asked for its instances") as (env, ask):
        # Not `unwrapped`: a wrapper may split the instances, and then the inner count is not that of the split.
        if most is None and isinstance(env, Enumerated):
            return _listed(ask(partial(env.instance_names, variant, "eval")), seed, variant)
        count = ask(partial(env.instances, variant, "eval")) if isinstance(env, Finite) else None
        if most is None:
            return _every(env_name, env, ask, seed, variant, count)
        if count is None:
            return [Instance(number) for number in range(most)]
        return _different(env, ask, seed, variant, min(most, count), count)


def _listed(names: Iterable[str], seed: int, variant: str) -> list[Instance]:
    """The named instances in an order without meaning, so that the first few of them are like the others."""
    ordered = sorted(names, key=lambda name: derive(seed, "order", variant, name))
    return [Instance(number, name) for number, name in enumerate(ordered)]


def _every(
    env_name: str,
    env: Env,
    ask: Callable[[Callable[[], str]], str],
    seed: int,
    variant: str,
    count: int | None,
) -> list[Instance]:
    """All `count` instances, found by draws. Raises RolloutError if the draws do not show all."""
    found = [] if count is None else _different(env, ask, seed, variant, count, count)
    if count is None or len(found) < count:
        raise RolloutError(
            f"eval.instances=all: the environment {env_name} has {count or 'any number of'} instances of {variant}, and"
            f" draws showed {len(found)}; give it a method `instance_names` (docs/tutorial.md), or eval.instances=drawn"
        )
    return found


def _different(
    env: Env, ask: Callable[[Callable[[], str]], str], seed: int, variant: str, wanted: int, count: int
) -> list[Instance]:
    """The first episodes of `wanted` different instances, or of fewer if the draws do not show so many."""

    def instance(number: int) -> str:
        options = {"variant": variant, "split": "eval"}
        _, info = env.reset(seed=evaluation_env_seed(seed, variant, number), options=options)
        return str(info["instance"])

    first: dict[str, int] = {}
    for number in range(_MOST_DRAWS * count):
        first.setdefault(ask(partial(instance, number)), number)
        if len(first) == wanted:
            break
    return [Instance(number) for number in first.values()]
