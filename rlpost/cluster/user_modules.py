"""Makes a user's own code importable in Ray's workers: modules named in env=, env_args and retention.*, and their
imports.

Workers of a private Ray are on this machine: the folders of the modules are added to their import path, and nothing is
copied. Workers of a joined cluster may be elsewhere, so Ray copies the modules there. The modules are found among those
loaded in this process: the named ones and those in the same folders.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rlpost.config.keys import refusal
from rlpost.config.schema import Config
from rlpost.envs import given, own, registry
from rlpost.errors import ConfigError

_ALWAYS_SHIPPED = ("rlpost",)
_PACKAGE = Path(__file__).resolve().parents[1]


def own_modules(cfg: Config) -> list[Path]:
    """The files and package folders of the user's code that the environment runs; empty for a bundled environment.

    The environment must already have been created in this process, as `rlpost.validate.checks` does.
    """
    named = {_top_level(name) for name in _references(cfg)}
    roots = {location.parent for location in _locations(named)} | set(_roots_of_given())
    beside = {name for name in sys.modules if "." not in name}
    return sorted(path for path in _locations(beside) if path.parent in roots)


def import_roots(modules: Iterable[Path]) -> list[Path]:
    """The folders from which the modules are imported."""
    return sorted({path.parent for path in modules})


def _references(cfg: Config) -> Iterator[str]:
    """The modules named as `module:name`, which are loaded by now."""
    named = [cfg.env, *([cfg.retention.env] if cfg.retention.env is not None else [])]
    for value in (*cfg.env_args.values(), *cfg.retention.env_args.values()):
        named += value if isinstance(value, list) else [value]
    for value in named:
        module = registry.module_named(str(value))
        if ":" in str(value) and module in sys.modules:
            yield module


def _roots_of_given() -> Iterator[Path]:
    """Folders from which objects that were handed over (envs/given.py) may import: beside their module, or `__main__`.

    The code of such an object travels with it; the modules that it uses are imported.
    """
    for each in given.table().values():
        module = sys.modules.get(_top_level(str(getattr(each, "__module__", None))))
        location = None if module is None else _location(module)
        if location is None or location.is_relative_to(_PACKAGE):
            yield Path.cwd()  # of a notebook, an interactive session, or a process of rlpost.api.background
        elif not _installed(location):
            yield location.parent


def refuse_unpicklable(objects: Mapping[str, Any]) -> None:
    """Raise ConfigError for an object that would not arrive in a rollout worker, by a trial of the way there."""
    from ray import cloudpickle

    for name, each in objects.items():
        try:
            cloudpickle.loads(cloudpickle.dumps(each))
        except Exception as error:  # an object decides itself how it is pickled
            reason = f"it cannot be pickled, and so cannot reach the rollout workers: {own.told(error)}"
            remedy = (
                "open files, locks and connections where they are used, not in a global or an outer function"
            )
            raise ConfigError(refusal(f"{given.MODULE}:{name}", repr(each), reason, remedy)) from error


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
