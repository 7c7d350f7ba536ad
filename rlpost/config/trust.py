"""Decides whose code a run may import: rlpost's own, and code that the command line names.

A record that is resumed may come from somebody else. It names modules that would be imported here (an environment, a
scorer, a reward function), the server of an environment, and a cluster whose answers are pickles. The owner of its
files proves nothing: the downloader owns a downloaded folder. So a user who resumes a run with such code must name it
again, and thereby says that it is trusted. What the command line names by `experiment=FILE` is trusted, as a script
would be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from rlpost.config.keys import refusal
from rlpost.config.schema import Config, Task
from rlpost.envs import given, registry
from rlpost.errors import ConfigError


def refuse_unnamed_code(config: Config, named: Collection[str], record: Path) -> None:
    """Raise ConfigError for code that a resumed record names, unless its keys are among those `named` by the user."""
    refusals = [
        refusal(
            key,
            value,
            f"{record} names {what}: a record may come from anybody",
            _remedy(key, value),
        )
        for key, value, what in _named_by(config)
        if key not in named
    ]
    if refusals:
        raise ConfigError("\n".join(refusals))


def _named_by(config: Config) -> Iterator[tuple[str, str, str]]:
    """Key, value, and the code that it would run here."""
    code = named_code(config.env, config.env_args)
    if config.retention.env is not None and config.task is not Task.eval:  # which does not play it
        elsewhere = named_code(config.retention.env, config.retention.env_args)
        code |= {f"retention.{key}": reference for key, reference in elsewhere.items()}
    if config.algo.reward_function is not None:
        code["algo.reward_function"] = config.algo.reward_function
    for key, reference in code.items():
        if registry.is_server(reference):
            yield key, reference, "this server, which a resumed run would send its model's answers"
        else:
            yield key, reference, f"this code ({_where(reference)}), and to resume would run it"
    if config.ray.address not in (None, "auto"):
        yield (
            "ray.address",
            str(config.ray.address),
            "this cluster, whose answers are unpickled, and so run, here",
        )


def _remedy(key: str, value: str) -> str:
    if given.is_reference(value.strip("[]")):
        return "hand the object over again, from Python: docs/api.md"
    return f"if you trust it, name it on the command line as well: {key}={value}"


def named_code(env: str, env_args: Mapping[str, Any]) -> dict[str, str]:
    """The code outside of rlpost that an environment would import, or its server, by the setting that names it."""
    own_code = registry.own_code(env, env_args)
    return {key if key == "env" else f"env_args.{key}": reference for key, reference in own_code.items()}


def _where(reference: str) -> str:
    """The files of the modules, or of the packages that contain them, found without importing anything."""
    modules = [registry.module_named(each) for each in reference.strip("[]").split(",") if ":" in each]
    if not modules or not all(part.isidentifier() for module in modules for part in module.split(".")):
        return "a command"
    return ", ".join(map(_file, dict.fromkeys(module.partition(".")[0] for module in modules)))


def _file(top_level: str) -> str:
    if top_level == given.MODULE:
        return "an object that Python code handed over"
    spec = PathFinder.find_spec(top_level)
    if spec is None:
        return f"there is no module {top_level} here"
    return spec.origin or ", ".join(spec.submodule_search_locations or ["unknown place"])
