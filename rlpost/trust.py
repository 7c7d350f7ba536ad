"""Whose code a run may import: rlpost's own, and what the command line names.

A record that is resumed may be somebody else's, and names modules that would be imported here: an environment's, a
scorer's. Who owns its files proves nothing, since a downloaded folder is the downloader's. So whoever resumes a run on
code outside of rlpost names that code again, and has then said what is trusted. `experiment=FILE` is named on the
command line and is trusted, as a script would be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from envs import registry
from rlpost.config import Config
from rlpost.errors import ConfigError
from rlpost.schema import refusal


def refuse_unnamed_code(config: Config, named: Collection[str], record: Path) -> None:
    """Raise ConfigError for code that a resumed record names, unless its keys are among those `named` by the user."""
    found = named_code(config.env, config.env_args)
    refusals = [
        refusal(
            key,
            reference,
            f"{record} names this code ({_where(reference)}), and to resume would run it: a record may come from"
            " anybody",
            f"if you trust it, name it on the command line as well: {key}={reference}",
        )
        for key, reference in found.items()
        if key not in named
    ]
    if refusals:
        raise ConfigError("\n".join(refusals))


def named_code(env: str, env_args: Mapping[str, Any]) -> dict[str, str]:
    """The code outside of rlpost that an environment would import, by the setting that names it."""
    found = registry.own_code(env, env_args)
    return {key if key == "env" else f"env_args.{key}": reference for key, reference in found.items()}


def _where(reference: str) -> str:
    """The file of the module, or of the package that it is in, found without importing anything."""
    top_level = reference.partition(":")[0].partition(".")[0]
    spec = PathFinder.find_spec(top_level)
    if spec is None:
        return f"there is no module {top_level} here"
    return spec.origin or ", ".join(spec.submodule_search_locations or ["unknown place"])
