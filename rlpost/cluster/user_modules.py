"""Makes a user's own code importable in Ray's workers: modules named in env= and env_args, and their imports.

Workers of a private Ray are on this machine: the folders of the modules are added to their import path, and nothing is
copied. Workers of a joined cluster may be elsewhere, so Ray copies the modules there. The modules are found among those
loaded in this process: the named ones and those in the same folders.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from rlpost.config.schema import Config

_ALWAYS_SHIPPED = ("rlpost",)


def own_modules(cfg: Config) -> list[Path]:
    """The files and package folders of the user's code that the environment runs; empty for a bundled environment.

    The environment must already have been created in this process, as `rlpost.validate.checks` does.
    """
    named = {_top_level(name) for name in _references(cfg)}
    roots = {location.parent for location in _locations(named)}
    beside = {name for name in sys.modules if "." not in name}
    return sorted(path for path in _locations(beside) if path.parent in roots)


def import_roots(modules: Iterable[Path]) -> list[Path]:
    """The folders from which the modules are imported."""
    return sorted({path.parent for path in modules})


def _references(cfg: Config) -> Iterator[str]:
    """The modules named as `module:name`, which are loaded by now."""
    named = [cfg.env]
    for value in cfg.env_args.values():
        named += value if isinstance(value, list) else [value]
    for value in named:
        module, colon, _ = str(value).partition(":")
        if colon and module in sys.modules:
            yield module


def _top_level(module: str) -> str:
    return module.partition(".")[0]


def _locations(names: Iterable[str]) -> Iterator[Path]:
    """The paths of top-level modules that are neither installed nor always shipped."""
    for name in names:
        location = _location(sys.modules[name])
        if location is not None and name not in (*_ALWAYS_SHIPPED, "__main__") and not _installed(location):
            yield location


def _location(module: ModuleType) -> Path | None:
    """The folder of a package or the .py file of a module; None for built-in and compiled modules."""
    folders = list(getattr(module, "__path__", ()))
    if folders:
        return Path(folders[0]).resolve()
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if file and file.endswith(".py") else None


def _installed(location: Path) -> bool:
    """Whether it belongs to Python or its installed packages, which every machine has already."""
    homes = [sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    homes += [*site.getsitepackages(), site.getusersitepackages()]
    return any(location.is_relative_to(Path(home).resolve()) for home in homes)
