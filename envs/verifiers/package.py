"""The package verifiers: which environments there are, and one of them loaded.

Loading runs the environment's own code, which may draw rows with Python's global random numbers, as the package's own
examples do. It runs with a fixed seed, so that every process has the same rows, and the seeds before are put back.
"""

from __future__ import annotations

import difflib
import importlib
import os
import random
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import distributions
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from rlpost.envs.errors import Refused, UnknownEnvironment
from rlpost.envs.own import known_arguments, told

_INSTALL = "pip install 'verifiers<0.4': docs/environments-from-elsewhere.md says how, beside vLLM"
_SANDBOXES = {"SandboxEnv", "SandboxMixin", "CliAgentEnv", "BrowserEnv"}  # classes that rent machines by API
_SANDBOX_KEY = "PRIME_API_KEY"
_LOADING = threading.RLock()  # the seeds are the process's


def package() -> ModuleType:
    """verifiers. UnknownEnvironment where it, or what it needs, is not installed, or has no load_environment."""
    try:
        package = importlib.import_module("verifiers")
    except ImportError as error:
        raise UnknownEnvironment(f"the package verifiers cannot be imported ({error})", _INSTALL) from error
    version = getattr(package, "__version__", "of an unknown version")
    try:
        load = package.load_environment
        base = package.MultiTurnEnv
    except AttributeError as error:  # the package hides what of its own dependencies is missing
        cause = f": {error.__cause__}" if error.__cause__ else ""
        raise UnknownEnvironment(
            f"verifiers {version} has no load_environment and MultiTurnEnv here{cause}", _INSTALL
        ) from error
    assert callable(load)
    _leave_signals(base)
    return package


def _leave_signals(environment_class: Any) -> None:
    """Keep environments from taking the process's signal handlers: only the main thread may, and they live elsewhere.

    Their handlers would tear down what `close` tears down anyway.
    """
    for each in environment_class.__mro__:
        module = importlib.import_module(each.__module__)
        real = getattr(module, "signal", None)
        if isinstance(real, ModuleType):
            kept = {name: getattr(real, name) for name in dir(real)}
            module.signal = SimpleNamespace(**{**kept, "signal": lambda *_: None})  # type: ignore[attr-defined]


def installed() -> list[str]:
    """Installed distributions that ask for verifiers, which its environments do."""
    return sorted(
        {
            each.metadata["Name"]
            for each in distributions()
            if any(re.match(r"verifiers\b", asked) for asked in each.requires or ())
        }
    )


def module_name(env_id: str) -> str:
    """The module of an environment, as verifiers finds it: `owner/my-env` is `my_env`."""
    return env_id.rpartition("/")[2].replace("-", "_")


def environment_module(env_id: str) -> Any:
    """The module of an environment, with its `load_environment`.

    UnknownEnvironment, with what there is, where it cannot be imported or is no environment.
    """
    package()
    name = module_name(env_id)
    if not name.isidentifier():
        raise UnknownEnvironment(f"verifiers:{env_id}: is no name of an environment", _there_are(env_id))
    try:
        module = importlib.import_module(name)
    except Exception as error:  # the environment's own code may raise anything
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        why = f"there is no module {name}" if absent else f"{name} cannot be imported: {told(error)}"
        raise UnknownEnvironment(f"verifiers:{env_id}: {why}", _there_are(env_id)) from error
    if not callable(getattr(module, "load_environment", None)):
        raise UnknownEnvironment(
            f"verifiers:{env_id}: the module {name} has no function load_environment", _there_are(env_id)
        )
    return module


def _there_are(env_id: str) -> str:
    there = installed()
    close = difflib.get_close_matches(module_name(env_id), [module_name(each) for each in there])
    if close:
        return f"did you mean {' or '.join(f'verifiers:{each}' for each in close)}?"
    named = f"installed: {', '.join(there)}" if there else "no installed package asks for verifiers"
    return f"install its package, or start where its module is importable ({named})"


@contextmanager
def _seeded() -> Iterator[None]:
    with _LOADING:
        python, numpy = random.getstate(), np.random.get_state()
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def load(env_id: str, args: Mapping[str, Any]) -> Any:
    """A verifiers environment. Refused for what it does not take, what it raises, and what is not carried."""
    module, vf = environment_module(env_id), package()
    known_arguments(f"verifiers:{env_id}", module.load_environment, args)
    try:
        with _seeded():
            env = vf.load_environment(env_id, **args)
    except Exception as error:
        key = "; set the key it asks for" if re.search(r"api.?key", str(error), re.IGNORECASE) else ""
        raise Refused(
            f"verifiers:{env_id}: cannot be loaded: {told(error)}", f"see its arguments{key}"
        ) from error
    _refuse_not_carried(env_id, env)
    return env


def rows_of(env: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of its training and its evaluation set, by "train" and "eval"; a set that it lacks is not there."""
    package = {}
    with _seeded():
        for split, kind in (("train", "dataset"), ("eval", "eval_dataset")):
            if any(getattr(env, name, None) is not None for name in (kind, f"{kind}_source")):
                package[split] = [dict(row) for row in getattr(env, f"get_{kind}")()]
    return package


def _refuse_not_carried(env_id: str, env: Any) -> None:
    kinds = {each.__name__ for each in type(env).__mro__}
    if "Environment" not in kinds:
        raise Refused(
            f"verifiers:{env_id}: its load_environment returns {type(env).__name__}, no environment of verifiers",
            "only environments with a data set and a rubric are carried",
        )
    if getattr(env, "requires_group_rollouts", False) or getattr(env.rubric, "has_group_rewards", False):
        raise Refused(
            f"verifiers:{env_id}: its rubric scores several answers together, which is not carried",
            "give its rubric functions of one answer; algo=grpo compares answers itself",
        )
    rented = sorted(kinds & _SANDBOXES)
    if rented and not os.environ.get(_SANDBOX_KEY):
        raise Refused(
            f"verifiers:{env_id}: it is a {rented[0]}, which rents sandboxes, and {_SANDBOX_KEY} is not set",
            f"set {_SANDBOX_KEY}, or choose an environment that runs here",
        )


def functions_of(rubric: Any) -> Iterator[tuple[list[Any], int]]:
    """Each reward function of a rubric and of the rubrics within it, as the list that holds it and its place."""
    for inner in getattr(rubric, "rubrics", ()):
        yield from functions_of(inner)
    yield from ((rubric.funcs, place) for place in range(len(rubric.funcs)))
