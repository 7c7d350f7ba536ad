"""Refuses a `retention` that cannot be measured, as part of rlpost.validate.checks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from rlpost.config.keys import refusal
from rlpost.config.schema import Config
from rlpost.envs import adapter, registry
from rlpost.envs.base import VariantInfo, is_scored
from rlpost.envs.errors import UnknownEnvironment
from rlpost.errors import RolloutError
from rlpost.record import text_file
from rlpost.record.retention import episodes_name
from rlpost.record.run_dir import iteration_name
from rlpost.rollout.elsewhere import elsewhere
from rlpost.rollout.env_threads import EnvThread
from rlpost.validate.environment import LONGEST_FILE, MORE_TIME, TRAINING, reason_and_remedy

_BUNDLED = "tiny"


def retention(config: Config) -> Iterator[str]:
    """Refusals of `retention.*`, for tasks that train."""
    if config.task not in TRAINING:
        return
    if config.retention.text is not None:
        yield from _text(config, config.retention.text)
    if config.retention.env is not None:
        yield from _environment(config, config.retention.env)


def _text(config: Config, text: str) -> Iterator[str]:
    if text == text_file.AUTO:
        if config.model != _BUNDLED:
            reason = f"auto is the corpus of the bundled model, and nothing here knows that of {config.model}"
            yield refusal("retention.text", text, reason, "name a file of text as the model was trained on")
        return
    try:
        found = any(document.strip() for document in text_file.documents(Path(text), most=4096))
    except (OSError, ValueError) as error:
        remedy = f'name a UTF-8 file, or .jsonl with {{"{text_file.KEY}": ...}} in each line'
        yield refusal("retention.text", text, f"it cannot be read: {error}", remedy)
        return
    if not found:
        yield refusal("retention.text", text, "it has no text", "name another file")


def _environment(config: Config, name: str) -> Iterator[str]:
    if name == config.env:
        reason = "it is the environment of the run itself"
        yield refusal("retention.env", name, reason, "add its variants to eval_variants, or name another")
        return
    thread = EnvThread()  # as in rollouts
    try:
        yield from _made(config, name, thread)
    except RolloutError as error:
        yield refusal("retention.env", name, str(error), MORE_TIME)
    finally:
        thread.end()


def _made(config: Config, name: str, thread: EnvThread) -> Iterator[str]:
    """Raises RolloutError if the environment misses a deadline."""
    args = config.retention.env_args
    ask = partial(thread.within, config.rollout.env_timeout_s, f"the environment {name}")
    try:
        known = ask(partial(registry.variants, name, **args))
        env = ask(partial(registry.make, name, **args))
    except (TypeError, ValueError) as error:
        unknown = isinstance(error, UnknownEnvironment)
        key, value = ("retention.env", name) if unknown else ("retention.env_args", args)
        yield refusal(key, value, *reason_and_remedy(error, f"see the arguments of {name}"))
        return
    wrong = list(_variants(config, known))
    yield from wrong
    for variant in () if wrong else elsewhere(config).eval_variants:
        try:
            ask(partial(_reset, env, config.eval.seed, variant))
        except RolloutError:
            raise
        except Exception as error:  # an environment may raise anything
            yield refusal(
                "retention.variants", variant, *reason_and_remedy(error, f"see rlpost.envs.check {name}")
            )
    if not is_scored(env.unwrapped):
        yield refusal("retention.env", name, "nothing scores its answers", "give retention.env_args.score")
    ask(env.close)


def _variants(config: Config, known: list[VariantInfo]) -> Iterator[str]:
    names, wanted = [each.name for each in known], config.retention.variants
    for variant in wanted:
        if variant not in names:
            reason = f"{config.retention.env} has no such variant"
            yield refusal("retention.variants", variant, reason, f"choose from {', '.join(names)}")
        elif len(episodes_name(iteration_name(0), variant)) > LONGEST_FILE:
            yield refusal("retention.variants", variant, "too long for the name of its file", "shorten it")
    if len(set(wanted)) != len(wanted):
        yield refusal("retention.variants", wanted, "one stands twice", "name each once")


def _reset(env: gymnasium.Env[Any, str], seed: int, variant: str) -> None:
    _, info = adapter.opened(env.reset(seed=seed, options={"variant": variant, "split": "eval"}))
    adapter.field(info, "instance", "reset")
