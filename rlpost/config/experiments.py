"""The experiments that `experiment=` accepts, and the settings in their files.

An experiment is a flat YAML file with only the settings that differ from the layers below it. Its first line is a
comment of one sentence, which the listing shows. `defaults: [OTHER]` makes it build on another experiment's file.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlpost.config.keys import leaves, refusal, refuse_marks
from rlpost.config.yaml_files import read_mapping
from rlpost.errors import ConfigError

BASES = "defaults"  # key of an experiment's file


@dataclass(frozen=True)
class Experiment:
    name: str
    path: Path
    summary: str  # the first comment line of the file


FOLDER = Path(__file__).resolve().parents[1] / "experiments"  # in a checkout a link to ../experiments


def experiments() -> dict[str, Experiment]:
    """Every experiment that `experiment=` accepts, by name. Raises ConfigError where the installation has none."""
    by_name = {}
    for path in sorted(FOLDER.resolve().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        by_name[path.stem] = Experiment(path.stem, path, first.removeprefix("#").strip())
    if not by_name:
        raise ConfigError(f"No experiments found: {FOLDER} holds no YAML file. Install rlpost again.")
    return by_name


def settings_in(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings, over those of the experiments that it builds on."""
    settings = read_mapping(path)
    refuse_marks(leaves(settings), where=str(path))  # OmegaConf would drop a '???' when merging
    bases = settings.pop(BASES, [])
    known = experiments()
    layers: list[Any] = []
    for base in bases if isinstance(bases, list) else [bases]:
        if base not in known or known[base].path in (path, *above):
            reason = "it is no experiment that this one could build on"
            remedy = "choose one of " + ", ".join(known)
            raise ConfigError(f"{path}\n  {refusal(BASES, base, reason, remedy)}")
        layers.append(settings_in(known[base].path, (path, *above)))
    merged = OmegaConf.to_container(OmegaConf.merge(*layers, settings))
    return typing.cast(dict[str, Any], merged)
