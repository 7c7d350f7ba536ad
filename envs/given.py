"""Objects that Python code hands to a run (`rlpost.train`): a class or a function under a name, `given:NAME`.

Some classes and functions cannot be imported by a name: those of a notebook, of `__main__` and of a local scope. A run
refers to them as `given:NAME`. The references end up in its record like any `module:name`; the objects stay in a table
of the process, which Ray's pickling brings to every rollout worker. envs/own.py looks references up here.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

MODULE = "given"
_PREFIX = f"{MODULE}:"
_table: dict[str, Any] = {}


def is_reference(reference: str) -> bool:
    return reference.startswith(_PREFIX)


def lookup(reference: str) -> Any:
    """What was handed over as `given:NAME`. Raises KeyError where nothing of that name was."""
    return _table[reference.removeprefix(_PREFIX)]


def table() -> dict[str, Any]:
    """What the present run was handed, by name."""
    return dict(_table)


def receive(objects: Mapping[str, Any]) -> None:
    """Make these the table: in a rollout worker, which serves a single run."""
    _table.clear()
    _table.update(objects)


@contextlib.contextmanager
def handed_over(objects: Mapping[str, Any]) -> Iterator[None]:
    """Make these the table for the length of a `with`."""
    before = table()
    receive(objects)
    try:
        yield
    finally:
        receive(before)


class Handover:
    """Gives every object a reference; `objects` are those that need the table."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}

    def reference(self, thing: Any) -> str:
        """`module:name` where every process can import it, else `given:NAME`."""
        if _is_importable(thing):
            return f"{thing.__module__}:{thing.__qualname__}"
        name, number = _name(thing), 2
        while self.objects.get(name, thing) is not thing:  # two functions of one name, such as two lambdas
            name, number = f"{_name(thing)}_{number}", number + 1
        self.objects[name] = thing
        return f"{_PREFIX}{name}"


def _is_importable(thing: Any) -> bool:
    """Whether it stands at the top of a module, under its own name. `__main__` is another module in each process."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    return getattr(sys.modules.get(module), name, None) is thing


def _name(thing: Any) -> str:
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = str(getattr(thing, "__name__", type(thing).__name__))
    return name if name.isidentifier() else "function"  # a lambda is called <lambda>
