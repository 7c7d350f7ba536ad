"""Loads the user's own code, named by `module:name`: an environment's class, or a function that scores answers.

Such code may raise anything, so every error during its import or call becomes a refusal that names the place.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium

from rlpost.envs import given
from rlpost.envs.adapter import ONLY_VARIANT, Adapted, check_interface
from rlpost.envs.base import VariantInfo
from rlpost.envs.errors import Refused, UnknownEnvironment, hint

_IMPORTABLE = "write module:name, importable from here: start in its folder, or install its package"
_RLPOST = str(Path(__file__).parents[1]) + "/"
_A_SCRIPT = 'put what the file does as a script under: if __name__ == "__main__":'


def told(error: BaseException) -> str:
    """The error, and the last line of code outside rlpost that led to it, which the user can look into."""
    files = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    elsewhere = [(name, line) for name, line in files if not name.startswith((_RLPOST, "<frozen"))]
    where = f" ({Path(elsewhere[-1][0]).name}:{elsewhere[-1][1]})" if elsewhere else ""
    return f"{type(error).__name__}: {error}{where}{hint(error)}"


def load(reference: str, refused: type[Refused] = Refused) -> Any:
    """The object that `module:name` names, or that was handed over as `given:NAME` (envs/given.py).

    Raises `refused` if it cannot be imported, was not handed over, or is in the standard library. Functions of the
    standard library accept anything: `cProfile:run` would run an answer as code.
    """
    if given.is_reference(reference):
        return _given(reference, refused)
    module, _, name = reference.partition(":")
    if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise refused(f"{reference!r} cannot be imported: it is not of the form module:name", _IMPORTABLE)
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise refused(f"{reference} is of Python's standard library, not made to be called here", _IMPORTABLE)
    try:
        return getattr(importlib.import_module(module), name)
    except SystemExit as error:  # a script, which reads the command line or ends when it is imported
        raise refused(
            f"{reference} cannot be imported: it calls sys.exit({error.code!r})", _A_SCRIPT
        ) from error
    except Exception as error:
        raise refused(f"{reference} cannot be imported: {told(error)}", _IMPORTABLE) from error


def _given(reference: str, refused: type[Refused]) -> Any:
    try:
        return given.lookup(reference)
    except KeyError:
        raise refused(
            f"{reference}: nothing of this name was handed over from Python in this process",
            "hand it over again: rlpost.train(..., env=, reward= or reward_model=), docs/api.md",
        ) from None


def _class(reference: str) -> type[gymnasium.Env[Any, str]]:
    named = load(reference, UnknownEnvironment)
    if not (isinstance(named, type) and issubclass(named, gymnasium.Env)):
        raise UnknownEnvironment(
            f"{reference}: is no subclass of gymnasium.Env", "name a class; docs/tutorial.md builds one"
        )
    return named


def _declared(reference: str) -> list[VariantInfo]:
    """The list `variants` of a class; empty if it has none."""
    variants = list(getattr(_class(reference), "variants", ()))
    for each in variants:
        if not all(hasattr(each, field) for field in ("name", "held_out", "summary")):
            raise Refused(
                f"{reference}: its variants hold {each!r}, which has not name, held_out and summary",
                "make each an rlpost.envs.base.PlainVariant",
            )
    return variants


def known_arguments(name: str, env_class: Any, args: Mapping[str, Any]) -> None:
    """Raises ValueError if an environment's constructor does not accept an argument; names those it accepts."""
    parameters = inspect.signature(env_class).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return
    unknown = sorted(args.keys() - parameters.keys())
    if unknown:
        raise ValueError(
            f"{name}: unknown argument {', '.join(unknown)}; there are: {', '.join(parameters) or 'none'}"
        )


def make(reference: str, args: Mapping[str, Any]) -> gymnasium.Env[Any, str]:
    """An environment of the user's class. It is adapted (envs/adapter.py) if it declares no variants."""
    env_class = _class(reference)
    known_arguments(reference, env_class, args)
    try:
        env = env_class(**args)
    except Exception as error:
        raise Refused(f"{reference}: cannot be made: {told(error)}", "see its arguments") from error
    check_interface(env, reference)
    return env if _declared(reference) else Adapted(env)


def variants(reference: str, args: Mapping[str, Any]) -> list[VariantInfo]:
    """The variants that the class declares, else the only one of an adapted environment."""
    return _declared(reference) or [ONLY_VARIANT]


def causes(reference: str) -> Mapping[str, str]:
    """The mapping `causes` of the class; empty if it has none."""
    declared = getattr(_class(reference), "causes", {})
    if not isinstance(declared, Mapping) or not all(
        isinstance(text, str) for pair in declared.items() for text in pair
    ):
        raise Refused(
            f"{reference}: its causes are {declared!r}, which is no mapping of texts",
            "give an outcome's name and its cause: docs/tutorial.md",
        )
    return declared
