"""A user's own code on its way to Ray's workers: the modules that env= and env_args name, and what those import.

A private Ray's workers are on this machine: the folders that hold the modules join their import path, nothing is
copied. A joined cluster's workers may be elsewhere: Ray copies the modules there. Which modules that are is read
from what is loaded: the named ones, and those that lie beside them.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from rlpost.config.schema import Config
from rlpost.envs import registry

_ALWAYS_SHIPPED = ("rlpost",)


def own_modules(cfg: Config) -> list[Path]:
    """Files and package folders of the user's code that the environment runs; none for a bundled one.

    The environment must have been made in this process before, as `rlpost.validate.checks` does.
    """
    named = {_top_level(name) for name in _references(cfg)}
    roots = {location.parent for location in _locations(named)}
    beside = {name for name in sys.modules if "." not in name}
    return sorted(path for path in _locations(beside) if path.parent in roots)


def import_roots(modules: Iterable[Path]) -> list[Path]:
    """The folders from which modules are imported."""
    return sorted({path.parent for path in modules})


def _references(cfg: Config) -> Iterator[str]:
    """Modules named as `module:name`, which are loaded by now."""
    named = [cfg.env]
    for value in cfg.env_args.values():
        named += value if isinstance(value, list) else [value]
    for value in named:
        module = registry.module_named(str(value))
        if ":" in str(value) and module in sys.modules:
            yield module


def _top_level(module: str) -> str:
    return module.partition(".")[0]


def _locations(names: Iterable[str]) -> Iterator[Path]:
    """Where top-level modules lie that are neither installed nor always shipped."""
    for name in names:
        location = _location(sys.modules[name])
        if location is not None and name not in (*_ALWAYS_SHIPPED, "__main__") and not _installed(location):
            yield location


def _location(module: ModuleType) -> Path | None:
    """A package's folder or a module's .py file; none for what is built in or compiled."""
    folders = list(getattr(module, "__path__", ()))
    if folders:
        return Path(folders[0]).resolve()
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None


def _installed(location: Path) -> bool:
    """Whether it belongs to Python or its installed packages, which every machine has of its own."""
    homes = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    homes += [*site.getsitepackages(), site.getusersitepackages()]
    return any(location.is_relative_to(Path(home).resolve()) for home in homes)
