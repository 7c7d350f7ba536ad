"""What a data set environment is told: where the rows are, which field is what, and who scores."""

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
        path: a JSONL file, a Parquet or Arrow file, or a folder written by `datasets.Dataset.save_to_disk`.
        score: `my_module:score`, called as score(answer, row) and returning a bool, a reward, or (reward, outcome);
            or `exact` or `number`, which compare with the field `answer`.
        held_out_path: further rows, only for evaluation: the variant `held_out`.
        prompt, answer: fields of a row.
        instruction: said after every prompt.
        marker: text after which `exact` and `number` read, in the model's answer and in the row's.
        variant: field that names a row's variant; without it all rows of `path` are the variant `default`.
        held_out: variants that are only for evaluation.
        expert: field that holds a whole right answer, from which supervised fine-tuning learns.
        eval_share: share of the other variants' prompts that is kept for evaluation, chosen by hash.
        success_at: least reward that counts as success.
    """

    path: str
    score: str
    held_out_path: str | None = None
    prompt: str = "prompt"
    answer: str = "answer"
    instruction: str = ""
    marker: str | None = None
    variant: str | None = None
    held_out: tuple[str, ...] = ()
    expert: str | None = None
    eval_share: float = EVAL_SHARE
    success_at: float = 1.0

    @classmethod
    def checked(cls, args: Mapping[str, Any]) -> Settings:
        """Refused for unknown, missing or ill-typed arguments, and for those that need another."""
        _refuse_names(args)
        settings = cls(**{key: _checked(key, value) for key, value in args.items()})
        if settings.held_out and settings.variant is None:
            raise Refused(
                f"held_out={list(settings.held_out)}: without variant= no row has a variant",
                "name the field that holds it",
            )
        if settings.marker == "":
            raise Refused("marker='': it is empty", "leave it out, or give a text such as '####'")
        return settings


def _refuse_names(args: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(Settings)]
    if unknown := sorted(args.keys() - set(known)):
        raise Refused(f"dataset: unknown argument {', '.join(unknown)}", f"there are: {', '.join(known)}")
    for needed in ("path", "score"):
        if needed not in args:
            raise Refused(
                f"dataset: {needed}= is missing",
                "give env_args.path=FILE and env_args.score=my_module:score (or exact, or number)",
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


def _share(key: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise Refused(f"{key}={value!r}: out of range", "give a number at least 0 and below 1")


def _number(key: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise Refused(f"{key}={value!r}: is no finite number", "give a number")


_MAY_BE_NONE = {field.name for field in fields(Settings) if field.default is None}
_CHECKS: dict[str, Callable[[str, object], object]] = {
    "held_out": _names,
    "eval_share": _share,
    "success_at": _number,
}
