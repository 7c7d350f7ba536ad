"""rlpost: post-training of language models in verifiable, multi-turn environments.

`__all__` is the public API, described in docs/api.md: these names are kept, every other name may change. They are
imported when they are first used, so that `import rlpost` alone brings nothing heavy.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rlpost import envs, errors
    from rlpost.api.record import Progress, Run, Started, open_run
    from rlpost.api.runs import evaluate, start, train
    from rlpost.envs.base import (
        Enumerated,
        Expert,
        ExpertTurn,
        Finite,
        Pictured,
        PlainVariant,
        VariantInfo,
        WithTools,
    )
    from rlpost.envs.messages import Message
    from rlpost.envs.splits import split_of
    from rlpost.envs.texts import AnySaid, AnyText
    from rlpost.envs.tool_calls import Malformed, ToolCall, tool_calls
    from rlpost.types import Trajectory, Turn

__all__ = [
    "AnySaid",
    "AnyText",
    "Enumerated",
    "Expert",
    "ExpertTurn",
    "Finite",
    "Malformed",
    "Message",
    "Pictured",
    "PlainVariant",
    "Progress",
    "Run",
    "Started",
    "ToolCall",
    "Trajectory",
    "Turn",
    "VariantInfo",
    "WithTools",
    "__version__",
    "envs",
    "errors",
    "evaluate",
    "open_run",
    "split_of",
    "start",
    "tool_calls",
    "train",
]

_HOMES = {
    "rlpost.api.record": ("Progress", "Run", "Started", "open_run"),
    "rlpost.api.runs": ("evaluate", "start", "train"),
    "rlpost.envs.base": (
        *(
            "Enumerated",
            "Expert",
            "ExpertTurn",
            "Finite",
            "Pictured",
            "PlainVariant",
            "VariantInfo",
            "WithTools",
        ),
    ),
    "rlpost.envs.messages": ("Message",),
    "rlpost.envs.splits": ("split_of",),
    "rlpost.envs.texts": ("AnySaid", "AnyText"),
    "rlpost.envs.tool_calls": ("Malformed", "ToolCall", "tool_calls"),
    "rlpost.types": ("Trajectory", "Turn"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name in ("envs", "errors"):
        return importlib.import_module(f"rlpost.{name}")
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'rlpost' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
