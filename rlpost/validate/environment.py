"""Refuses environments that are unknown, cannot be created or have no instances, as part of rlpost.validate.checks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import gymnasium

from rlpost.config.adapter_starts import STARTS, StartData
from rlpost.config.arms import TABLE as ARMS
from rlpost.config.keys import refusal
from rlpost.config.schema import CompareConfig, Config, Instances, Task
from rlpost.envs import adapter, registry
from rlpost.envs.base import Enumerated, Expert, Finite, Rehearsed, Taught, VariantInfo, is_scored
from rlpost.envs.dataset.table import HELD_OUT
from rlpost.envs.errors import Refused, UnknownEnvironment
from rlpost.envs.own import told
from rlpost.errors import RolloutError
from rlpost.record.run_dir import evaluation_name, iteration_name
from rlpost.rollout.endpoint.fit import unplayable
from rlpost.rollout.env_threads import EnvThread

TRAINING = (Task.rl, Task.sft, Task.compare)
LONGEST_FILE = 255 - len(".jsonl") - 16  # bytes; the name of a half-written file is 16 longer
_NAME_ONE = (
    "env=my_module:MyEnv, env=dataset, env=agent or env=reasoning_gym:TASK, with train_variant= and eval_variants="
    " where it has variants (docs/tutorial.md); python -m rlpost.envs.list: what there is"
)
MORE_TIME = "mend it, or give more to rollout.env_timeout_s if it is only slow"

T = TypeVar("T")


def environment(config: Config) -> Iterator[str]:
    """Refusals of `env`, `env_args`, `train_variant`, `eval_variants`, and of learning from an expert without one."""
    if not config.env:
        yield refusal("env", config.env, "no environment is named", _NAME_ONE)
        return
    thread = EnvThread()  # as in rollouts
    try:
        yield from _environment(config, thread)
    finally:
        thread.end()


def _environment(config: Config, thread: EnvThread) -> Iterator[str]:
    try:
        known = _in_time(
            config, thread, "its variants", partial(registry.variants, config.env, **config.env_args)
        )
        env = _in_time(config, thread, "making it", partial(registry.make, config.env, **config.env_args))
    except RolloutError as error:
        yield refusal("env", config.env, str(error), MORE_TIME)
        return
    except (TypeError, ValueError) as error:
        yield _refused_environment(config, error)
        return
    variants = {each.name: each for each in known}
    refusals = [*_evaluated_variants(config, variants), *_training_variant(config, variants)]
    try:
        refusals = refusals or list(_instances(config, thread, env))
        refusals = refusals or list(_all_instances(config, thread, env))
        yield from (*refusals, *_expert(config, env), *_start(config, env), *_unscored(config, env))
        yield from () if refusals else _by_endpoint(config, env)
        yield from _rehearsals(config, thread, env)
        _in_time(config, thread, "close", env.close)
    except _Hangs as hangs:
        yield hangs.refusal
    except Exception as error:  # raised by `close`
        yield refusal(
            "env", config.env, f"close: {told(error)}", f"see python -m rlpost.envs.check {config.env}"
        )


class _Hangs(Exception):
    """The environment does not answer, so no further checks are possible."""

    def __init__(self, refusal: str) -> None:
        super().__init__(refusal)
        self.refusal = refusal


def _in_time(config: Config, thread: EnvThread, what: str, work: Callable[[], T]) -> T:
    """Call the environment as rollouts do. Raises RolloutError if it misses its deadline."""
    return thread.within(config.rollout.env_timeout_s, f"the environment {config.env} ({what})", work)


def _refused_environment(config: Config, error: Exception) -> str:
    """The refusal if the environment is unknown, or its arguments are wrong."""
    unknown = isinstance(error, UnknownEnvironment)
    key, value = ("env", config.env) if unknown else ("env_args", config.env_args)
    return refusal(key, value, *reason_and_remedy(error, f"see the arguments of {config.env}"))


def reason_and_remedy(error: Exception, remedy: str) -> tuple[str, str]:
    if isinstance(error, Refused):
        return error.reason, error.remedy
    return told(error), remedy


def _evaluated_variants(config: Config, variants: dict[str, VariantInfo]) -> Iterator[str]:
    choose = "choose from " + ", ".join(variants)
    held_out_path = config.env_args.get("held_out_path")
    if held_out_path is not None and HELD_OUT in variants and HELD_OUT not in config.eval_variants:
        yield refusal(
            "env_args.held_out_path",
            held_out_path,
            f"nothing evaluates on it: its rows are the variant {HELD_OUT}, and eval_variants="
            f"{list(config.eval_variants)}",
            f"eval_variants=[{HELD_OUT}] (with env_args.eval_share=0 all other rows are trained on), or leave it out",
        )
    for name in config.eval_variants:
        if name not in variants:
            yield refusal("eval_variants", name, _no_such_variant(config, name), choose)
        elif len(evaluation_name(iteration_name(0), name, "sampled")) > LONGEST_FILE:
            yield refusal(
                "eval_variants", name, "too long for the name of its evaluation's file", "shorten it"
            )
    if len(set(config.eval_variants)) != len(config.eval_variants) or not config.eval_variants:
        yield refusal("eval_variants", config.eval_variants, "empty, or one stands twice", "name each once")


def _instances(config: Config, thread: EnvThread, env: gymnasium.Env[Any, str]) -> Iterator[str]:
    """Refusals if there are no instances to train or evaluate on. Raises _Hangs."""
    wanted = [("eval_variants", name, "eval") for name in config.eval_variants]
    if config.task in TRAINING:
        wanted.append(("train_variant", config.train_variant, "train"))
    for key, variant, split in wanted:
        reset = partial(_reset, env, config.seed, {"variant": variant, "split": split})
        try:
            _in_time(config, thread, f"reset, split {split}", reset)
        except RolloutError as error:
            raise _Hangs(refusal(key, variant, str(error), MORE_TIME)) from error
        except Exception as error:  # an environment may raise anything, and would do so for hours
            yield refusal(
                key, variant, *reason_and_remedy(error, f"see python -m rlpost.envs.check {config.env}")
            )


def _all_instances(config: Config, thread: EnvThread, env: gymnasium.Env[Any, str]) -> Iterator[str]:
    """A refusal of eval.instances=all for the first variant whose instances can be neither listed nor counted.

    What scores nothing has a list of answers instead. Raises _Hangs.
    """
    wanted = config.eval.instances is Instances.all and is_scored(env.unwrapped)
    for variant in config.eval_variants if wanted and not isinstance(env, Enumerated) else ():
        try:
            count = (
                _in_time(config, thread, "its instances", partial(env.instances, variant, "eval"))
                if isinstance(env, Finite)
                else None
            )
        except RolloutError as error:
            raise _Hangs(refusal("env", config.env, str(error), MORE_TIME)) from error
        if count is None:
            yield refusal(
                "eval.instances",
                config.eval.instances.value,
                f"the environment {config.env} does not list the instances of {variant}, nor say how many there are:"
                " there may be no end of them",
                "eval.instances=drawn with eval.episodes=N, or give the environment a method `instance_names` or"
                " `instances` (docs/tutorial.md)",
            )
            return


def _reset(env: gymnasium.Env[Any, str], seed: int, options: dict[str, str]) -> None:
    """Reset the environment. Raises what it raises, and Refused if rollouts cannot use what it returns."""
    _, info = adapter.opened(env.reset(seed=seed, options=options))
    adapter.field(info, "instance", "reset")
    adapter.tools_of(env)


def _expert(config: Config, env: gymnasium.Env[Any, str]) -> Iterator[str]:
    """A refusal if expert answers are to be learnt from and the environment shows none."""
    asked = config.sft.steps > 0 or (config.task is Task.compare and _has_supervised_arm(config))
    if config.task not in TRAINING:
        return
    coefficient = _expert_coef(config)
    if coefficient and not isinstance(env.unwrapped, Expert):
        yield refusal(
            "algo.expert_coef",
            coefficient,
            f"the environment {config.env} has no expert answers to mix in",
            "set it to 0, leave out the arm that sets it, or give the environment a method `expert`",
        )
    if asked and not isinstance(env.unwrapped, Expert):
        give = (
            "give it some: a method `expert`, or for a data set rows with a completion or messages of the assistant,"
            " or env_args.expert=FIELD"
        )
        yield refusal(
            "sft.steps",
            config.sft.steps,
            f"the environment {config.env} has no expert answers to learn from",
            f"sft.steps=0, or {give}" if config.task is Task.rl else give,
        )
    elif (asked or coefficient) and config.sft.examples and isinstance(env.unwrapped, Taught):
        lessons = len(env.unwrapped.lessons(config.train_variant, "train"))
        if config.sft.examples > lessons:
            told = f"{config.train_variant} has {lessons} answers to learn from"
            yield refusal("sft.examples", config.sft.examples, told, "give no more, or 0 for all")


def _expert_coef(config: Config) -> float:
    """The largest algo.expert_coef that the run, or an arm of the comparison, learns with."""
    if config.task is Task.sft:
        return 0.0
    compared = config.compare if config.task is Task.compare else CompareConfig(arms=[])
    of_arms = [ARMS[arm].settings for arm in compared.arms if arm in ARMS]
    settings = [*of_arms, *compared.settings.values()]
    given = [each.get("algo.expert_coef", 0.0) for each in settings]
    return max(
        [config.algo.expert_coef, *(float(value) for value in given if isinstance(value, (int, float)))]
    )


def _has_supervised_arm(config: Config) -> bool:
    return any(ARMS[arm].supervised for arm in config.compare.arms if arm in ARMS)


def _start(config: Config, env: gymnasium.Env[Any, str]) -> Iterator[str]:
    """A refusal if the adapter's start needs a loss and the environment shows no answers."""
    needs_answers = STARTS[config.lora.start].data is StartData.answers
    if config.task in TRAINING and needs_answers and not isinstance(env.unwrapped, Expert):
        yield refusal(
            "lora.start",
            config.lora.start.value,
            f"it reads the gradient of a loss, and the environment {config.env} has no expert answers",
            "choose a start that reads prompts alone (eva, corda), or none",
        )


def _unscored(config: Config, env: gymnasium.Env[Any, str]) -> Iterator[str]:
    """A refusal if episodes are to be played and the environment does not score answers."""
    if config.task is not Task.sft and not is_scored(env.unwrapped):
        yield refusal(
            "env_args.score",
            config.env_args.get("score"),
            f"task={config.task.value} plays episodes, and nothing scores their answers",
            "env_args.score=my_module:score (or exact, number, math, code), or task=sft to learn from the data's own"
            " answers",
        )
    elif config.retention.kl and not is_scored(env.unwrapped):
        reason = "the KL is measured on episodes, and nothing scores the answers of this run's"
        yield refusal("retention.kl_episodes", config.retention.kl_episodes, reason, "give 0")


def _by_endpoint(config: Config, env: gymnasium.Env[Any, str]) -> Iterator[str]:
    """A refusal if the model behind eval.endpoint is to play and the environment needs more than text from it."""
    if config.task is not Task.eval or config.eval.endpoint is None:
        return
    if reason := unplayable(env, bool(adapter.tools_of(env))):
        yield refusal("env", config.env, f"eval.endpoint cannot play it: {reason}", "leave eval.endpoint out")


def _rehearsals(config: Config, thread: EnvThread, env: gymnasium.Env[Any, str]) -> Iterator[str]:
    """Try the user's code that the environment calls, up to the first fault or the deadline. Raises _Hangs."""
    deadline = time.monotonic() + config.rollout.env_timeout_s
    for what, call in env.unwrapped.rehearsals() if isinstance(env.unwrapped, Rehearsed) else ():
        try:
            _in_time(config, thread, what, call)
        except RolloutError as error:
            raise _Hangs(refusal("env", config.env, str(error), MORE_TIME)) from error
        except Exception as error:
            yield refusal("env", config.env, f"{what}: {told(error)}", "mend the function, or the row")
            return
        if time.monotonic() > deadline:
            return


def _training_variant(config: Config, variants: dict[str, VariantInfo]) -> Iterator[str]:
    allowed = "choose from " + ", ".join(name for name, variant in variants.items() if not variant.held_out)
    name = config.train_variant
    if name not in variants:
        yield refusal("train_variant", name, _no_such_variant(config, name), allowed)
    elif config.task in TRAINING and variants[name].held_out:
        yield refusal("train_variant", name, "it is held out: only for evaluation", allowed)


def _no_such_variant(config: Config, name: str) -> str:
    """The refusal of an unknown variant. It says where the variant comes from, if the user did not write it."""
    schema = Config()
    default = name in (schema.train_variant, *schema.eval_variants) and config.env != schema.env
    of = f"; {name} is the default, of {schema.env}" if default else ""
    return f"{config.env} has no such variant{of}"
