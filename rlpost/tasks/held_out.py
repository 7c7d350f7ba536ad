"""Evaluation without episodes: the loss on held-out answers, for environments that show answers and do not score any.

A stage's line of metrics.jsonl has, for each of `eval_variants`, `held_out/VARIANT/loss`: the mean negative
log-likelihood per token of the answers, in nats, over at most `eval.episodes` of the variant's evaluation rows, or over
all with `eval.instances=all`.
"""

from __future__ import annotations

import json
import random
from functools import partial

from rlpost.config.schema import Config, Instances
from rlpost.envs.base import Taught, is_scored
from rlpost.envs.caches import remembered
from rlpost.record.summary import HELD_OUT
from rlpost.rollout.env_threads import living
from rlpost.seeds import derive
from rlpost.tasks.session import Session
from rlpost.types import Example


def scored(cfg: Config) -> bool:
    """Whether the environment scores answers, so that evaluation plays episodes.

    Raises RolloutError if it misses rollout.env_timeout_s.
    """
    return _scored(cfg.env, json.dumps(cfg.env_args, sort_keys=True), cfg.rollout.env_timeout_s)


@remembered(maxsize=8)
def _scored(env_name: str, args: str, timeout_s: float) -> bool:
    with living(env_name, json.loads(args), timeout_s, "asked whether it scores") as (env, _):
        return is_scored(env.unwrapped)


def evaluate_stage(session: Session, stage: str, axis: str, finished: int) -> None:
    """Measure the loss of every variant and write it to metrics.jsonl, the console and the trackers.

    `axis`: the trackers' key for the number of steps `finished` before the stage.
    """
    measured: dict[str, float] = {}
    with session.clock.phase("evaluation"):
        session.pool.sleep()
        for variant in session.cfg.eval_variants:
            session.progress.stage(f"held-out loss ({stage}): {variant}")
            examples = _examples(session, variant)
            found = session.learner.sft_loss(examples)
            measured |= {f"{HELD_OUT}{variant}/{key}": value for key, value in found.items()}
            measured[f"{HELD_OUT}{variant}/examples"] = float(len(examples))
            session.progress.note(
                f"held-out loss ({stage}): {variant} {found['loss']:.4f} nats per token, of {len(examples)} answers"
            )
    session.tracker.log({axis: float(finished), **measured}, over=axis)
    session.book(stage, measured)


def _examples(session: Session, variant: str) -> list[Example]:
    """A variant's examples, the same at every stage: at most `eval.episodes`, chosen by `eval.seed`.

    With `eval.instances=all`: every example.
    """
    cfg = session.cfg
    timeout_s = cfg.rollout.env_timeout_s
    with living(cfg.env, cfg.env_args, timeout_s, "asked for held-out answers") as (env, ask):
        taught = env.unwrapped
        assert isinstance(taught, Taught), "validated: what scores nothing has lessons"
        lessons = list(ask(partial(taught.lessons, variant, "eval")))
    if cfg.eval.instances is Instances.drawn and len(lessons) > cfg.eval.episodes:
        rng = random.Random(derive(cfg.eval.seed, "held-out answers", variant))
        lessons = rng.sample(lessons, cfg.eval.episodes)
    return [session.chat.example(conversation) for _, conversation in lessons]
