"""The rows of a verifiers environment as instances, apart for training and evaluation."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rlpost.envs.errors import Refused
from rlpost.envs.messages import Message, Said
from rlpost.envs.splits import Split, split_of
from rlpost.envs.verifiers.conversation import message_of
from rlpost.envs.verifiers.package import load, rows_of

_READING = threading.Lock()
_NAMED = ("prompt", "answer", "info")  # what makes two rows the same instance


@dataclass(frozen=True)
class Row:
    where: str
    instance: str
    data: Mapping[str, Any]

    @property
    def said(self) -> Said:
        """Its prompt. Refused for images, and where there is none."""
        prompt = self.data.get("prompt")
        said = (
            (Message.of("user", prompt),) if isinstance(prompt, str) else tuple(map(message_of, prompt or ()))
        )
        if not said:
            raise Refused(f"{self.where} has no prompt", "give the row a prompt, or a question")
        return said


@dataclass(frozen=True)
class Rows:
    """The rows of each split, each instance once, and what is odd about them."""

    by_split: Mapping[Split, tuple[Row, ...]]
    remarks: tuple[str, ...]


def rows(env_id: str, args: Mapping[str, Any]) -> Rows:
    """The rows of an environment, read once a process. Refused as `load` does, and where there are none."""
    try:
        key = json.dumps(args, sort_keys=True)
    except TypeError as error:
        raise Refused(
            f"verifiers:{env_id}: arguments must be plain data: {error}", "see its arguments"
        ) from error
    with _READING:
        return _rows(env_id, key)


@lru_cache(maxsize=16)  # every environment of a worker asks for them
def _rows(env_id: str, args: str) -> Rows:
    sets = {split: _dealt(split, each) for split, each in rows_of(load(env_id, json.loads(args))).items()}
    return divided(env_id, {split: each for split, each in sets.items() if each})


def divided(env_id: str, sets: Mapping[str, list[Row]]) -> Rows:
    """Rows by the environment's own two sets, where it has both; else those of its only set by hash (envs/splits.py).

    An instance of both sets is only trained on. Refused where there is no row.
    """
    every = [row for each in sets.values() for row in each]
    if not every:
        raise Refused(f"verifiers:{env_id}: it has no rows", "see its arguments")
    twice = sum(
        count - 1 for each in sets.values() for count in Counter(row.instance for row in each).values()
    )
    remarks = [f"{twice} rows stand there before, with the same prompt, answer and info"] if twice else []
    if len(sets) == 2:
        train = _once(sets["train"])
        evaluated = {name: row for name, row in _once(sets["eval"]).items() if name not in train}
        both = len(_once(sets["eval"])) - len(evaluated)
        remarks += [
            f"{both} rows of its evaluation set are in its training set too, and only trained on"
        ] * bool(both)
    else:
        once = _once(every)
        train = {name: row for name, row in once.items() if split_of(name) is Split.TRAIN}
        evaluated = {name: row for name, row in once.items() if name not in train}
        remarks.append(f"it has only a set {next(iter(sets))!r}: its rows are split by hash")
    splits = {
        Split.TRAIN: tuple(train.values()),
        Split.EVAL: tuple(evaluated.values()),
        Split.ALL: (*train.values(), *evaluated.values()),
    }
    return Rows(splits, tuple(remarks))


def _once(given: list[Row]) -> dict[str, Row]:
    first: dict[str, Row] = {}
    for row in given:
        first.setdefault(row.instance, row)
    return first


def _dealt(split: str, data_rows: list[dict[str, Any]]) -> list[Row]:
    return [Row(f"{split} row {place}", instance_of(data), data) for place, data in enumerate(data_rows)]


def instance_of(data: Mapping[str, Any]) -> str:
    """What a row is called: a hash of its prompt, answer and info, since rows may ask the same and want different."""
    told = json.dumps({key: data.get(key) for key in _NAMED}, sort_keys=True, default=str)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:16]
