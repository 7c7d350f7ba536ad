"""The arguments of a data set environment: the place of the rows, the meaning of fields, and the scorers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rlpost.envs.errors import Refused
from rlpost.envs.splits import EVAL_SHARE


@dataclass(frozen=True)
class Settings:
    """The arguments of `env=dataset`.

    Args:
        path: a JSONL, Parquet or Arrow file, a folder written by `datasets.Dataset.save_to_disk`, or a data set of the
            hub: hf:OWNER/NAME[:CONFIG][@REVISION][#SPLIT].
        score: `my_module:function` (envs/dataset/rewards.py says what one is given and may return), or `exact`,
            `number` or `math`, which compare with the field `answer`, or `code`, which runs the field `tests`; or a
            list of these. Without a scorer, a data set can be used only for task=sft.
        weights: a factor for each function of a list; by default 1 each.
        held_out_path: further rows, only for evaluation: the variant `held_out`.
        prompt, messages, answer, tests: fields of a row. `prompt` or `messages` may be null: not to be used.
        instruction: text added to every prompt.
        marker: `exact` and `number` read the text after it, in the model's answer and in the row's.
        variant: field that names a row's variant; without it all rows of `path` are the variant `default`.
        held_out: variants that are only for evaluation.
        expert: field that contains a whole right answer, from which supervised fine-tuning learns. By default the
            field `completion`, or the assistant's messages.
        eval_share: share of the other variants' prompts that is reserved for evaluation, chosen by hash.
        success_at: least reward that counts as success.
        time_limit_s, memory_mib: limits of `code` and `math` for one answer, in seconds and MiB.
    """

    path: str
    score: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    held_out_path: str | None = None
    prompt: str | None = "prompt"
    messages: str | None = "messages"
    answer: str = "answer"
    tests: str = "tests"
    instruction: str = ""
    marker: str | None = None
    variant: str | None = None
    held_out: tuple[str, ...] = ()
    expert: str | None = None
    eval_share: float = EVAL_SHARE
    success_at: float = 1.0
    time_limit_s: float = 5.0
    memory_mib: float = 512.0

    @classmethod
    def checked(cls, args: Mapping[str, Any]) -> Settings:
        """Raises Refused for unknown, missing or ill-typed arguments, and for arguments that need another one."""
        _refuse_names(args)
        settings = cls(**{key: _checked(key, value) for key, value in args.items()})
        if settings.held_out and settings.variant is None:
            raise Refused(
                f"held_out={list(settings.held_out)}: without variant= no row has a variant",
                "name the field that holds it",
            )
        if settings.marker == "":
            raise Refused("marker='': it is empty", "leave it out, or give a text such as '####'")
        if settings.prompt is None and settings.messages is None:
            raise Refused("prompt=None and messages=None: no field is left to ask", "name one of the two")
        _refuse_weights(settings)
        return settings


def _refuse_names(args: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Settings)]
    if unknown := sorted(args.keys() - set(known)):
        raise Refused(f"dataset: unknown argument {', '.join(unknown)}", f"there are: {', '.join(known)}")
    if "path" not in args:
        raise Refused(
            "dataset: path= is missing",
            "give env_args.path=FILE, and to play episodes env_args.score=my_module:score (or exact, number, ...)",
        )


def _refuse_weights(settings: Settings) -> None:
    if twice := {name for name in settings.score if settings.score.count(name) > 1}:
        raise Refused(f"score={list(settings.score)}: {min(twice)} stands twice", "name each once")
    if settings.weights and len(settings.weights) != len(settings.score):
        raise Refused(
            f"weights={list(settings.weights)}: are {len(settings.weights)}, for {len(settings.score)} functions",
            "give one for each function of score=",
        )


def _checked(key: str, value: object) -> Any:
    return _CHECKS[key](key, value) if key in _CHECKS else _text(key, value)


def _text(key: str, value: object) -> object:
    if isinstance(value, str) or (value is None and key in _MAY_BE_NONE):
        return value
    raise Refused(f"{key}={value!r}: is no text", "give a text")


def _names(key: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, Sequence) and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    raise Refused(f"{key}={value!r}: are no names", "give a list: [hard,harder]")


def _scorers(key: str, value: object) -> tuple[str, ...]:
    """The scorers of a list. YAML may have read it as [a:b,c]: only names, each with its colon."""
    if value is None:
        return ()
    names = [value] if isinstance(value, str) else value
    if isinstance(names, Sequence) and names and all(isinstance(name, str) and name for name in names):
        return tuple(names)
    raise Refused(
        f"{key}={value!r}: names no scoring functions",
        "give one, my_module:score, or a list: [rewards:a,rewards:b]",
    )


def _weights(key: str, value: object) -> tuple[float, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_number(key, each) for each in value)
    raise Refused(f"{key}={value!r}: is no list", "give a number for each function: [1,0.2]")


def _positive(key: str, value: object) -> float:
    if (number := _number(key, value)) > 0:
        return number
    raise Refused(f"{key}={value!r}: out of range", "give a number above 0")


def _share(key: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise Refused(f"{key}={value!r}: out of range", "give a number at least 0 and below 1")


def _number(key: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise Refused(f"{key}={value!r}: is no finite number", "give a number")


_MAY_BE_NONE = {field.name for field in fields(Settings) if field.default is None} | {"prompt", "messages"}
_CHECKS: dict[str, Callable[[str, object], object]] = {
    "score": _scorers,
    "weights": _weights,
    "time_limit_s": _positive,
    "memory_mib": _positive,
    "held_out": _names,
    "eval_share": _share,
    "success_at": _number,
}
