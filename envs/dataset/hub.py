"""Rows of a data set on the Hugging Face hub, by the package `datasets`, an optional extra.

hf:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]     hf:openai/gsm8k:main@e53f048#test
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlpost.envs.errors import Refused

PREFIX = "hf:"
FORM = "hf:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]"
_NAME = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?(?:#(?P<split>[\w.-]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubId:
    name: str
    config: str | None
    revision: str | None
    split: str


def parsed(source: str) -> HubId:
    """The parts of a source of the form FORM. Raises Refused for any other."""
    if (match := _NAME.fullmatch(source)) is None:
        raise Refused(f"{source}: is no name of a data set", f"write {FORM}")
    return HubId(match["name"], match["config"], match["revision"], match["split"] or "train")


def read(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for each row. Raises Refused if it is not available. `datasets` 4 runs no code of a data set."""
    wanted = parsed(source)
    try:
        import datasets
    except ImportError as error:
        raise Refused(
            f"{source}: the package datasets, which fetches it, is not installed",
            "pip install 'rlpost[hub]', or write the rows as a .jsonl file",
        ) from error
    try:
        rows = datasets.load_dataset(wanted.name, wanted.config, revision=wanted.revision, split=wanted.split)
    except Exception as error:  # from the network, the hub or the data set's files, in a dozen types
        raise Refused(
            f"{source}: cannot be had: {type(error).__name__}: {error}",
            f"see its name, configuration and split ({FORM}; the split is train by default), and HF_TOKEN where it is"
            " not public",
        ) from error
    for index, row in enumerate(rows):
        yield f"{source}, row {index}", dict(row)
