"""Results that a process remembers for the length of a run.

Another run in the same process may mean something else by the same name: a class that a notebook has defined anew, or a
file that was written again. `rlpost.train` forgets everything before it starts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

R = TypeVar("R")
_forget: list[Callable[[], None]] = []


def remembered(maxsize: int) -> Callable[[Callable[..., R]], functools._lru_cache_wrapper[R]]:
    """`functools.lru_cache(maxsize)`, which `forget` empties. Arguments must be hashable."""

    def decorate(function: Callable[..., R]) -> functools._lru_cache_wrapper[R]:
        cached = functools.lru_cache(maxsize)(function)
        _forget.append(cached.cache_clear)
        return cached

    return decorate


def forget() -> None:
    """Empty the cache of every function that `remembered` has decorated."""
    for each in _forget:
        each()
