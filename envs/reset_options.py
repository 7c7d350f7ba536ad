"""The options of `reset`, which are the same for every environment with variants and splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rlpost.envs.choices import Mode, choose
from rlpost.envs.splits import Split

AnyVariant = TypeVar("AnyVariant")


def variant_and_split(
    given: Mapping[str, Any] | None,
    variants: Mapping[str, AnyVariant],
    default: str,
    mode: Mode,
    others: Sequence[str] = (),
) -> tuple[AnyVariant, Split]:
    """The variant and split for a reset. In compat the default split is all instances.

    `others`: further options, which the environment reads itself. Raises ValueError that names the key, the value and
    the choices.
    """
    options, known = {} if given is None else given, ("variant", "split", *others)
    unknown = options.keys() - set(known)
    if unknown:
        raise ValueError(f"options={sorted(unknown)}: unknown; there are {', '.join(known)}")
    name = options.get("variant", default)
    if not isinstance(name, str) or name not in variants:
        raise ValueError(f"variant={name!r}: must be one of {', '.join(variants)}")
    if "split" in options:
        return variants[name], choose(Split, "split", options["split"])
    return variants[name], Split.ALL if mode is Mode.COMPAT else Split.TRAIN
