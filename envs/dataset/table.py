"""The rows of a data set, checked, and divided among variants and splits."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from rlpost.envs.base import PlainVariant
from rlpost.envs.caches import remembered
from rlpost.envs.dataset.conversation import Asked, BadRow, Row, asked
from rlpost.envs.dataset.files import read
from rlpost.envs.dataset.scoring import answer_number, applies, compares, is_answer
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.errors import Refused
from rlpost.envs.splits import Split, split_of

DEFAULT, HELD_OUT = "default", "held_out"
_MOST_NAMED = 5
_READING = threading.Lock()
_MOST_TRIED = 8


@dataclass(frozen=True, eq=False)
class Item:
    where: str
    variant: str
    question: Asked


@dataclass(frozen=True)
class Table:
    """Every row by variant and split, and an endless supply of questions drawn with replacement."""

    settings: Settings
    items: tuple[Item, ...]

    @property
    def held_out(self) -> frozenset[str]:
        return frozenset((HELD_OUT, *self.settings.held_out))

    @cached_property
    def variants(self) -> dict[str, PlainVariant]:
        """The variants in the order of the rows, those to train on first."""
        names = dict.fromkeys(item.variant for item in self.items)
        return {
            name: PlainVariant(name, name in self.held_out, self._summary(name))
            for name in sorted(names, key=self.held_out.__contains__)
        }

    def _summary(self, variant: str) -> str:
        trained, held_out = (len(self.questions(variant, split)) for split in (Split.TRAIN, Split.EVAL))
        source = self.settings.held_out_path if variant == HELD_OUT else None
        return f"{trained} rows to train on, {held_out} to evaluate on, of {source or self.settings.path}"

    def questions(self, variant: str, split: Split) -> tuple[Asked, ...]:
        return self._questions.get((variant, split), ())

    def drawn(self, variant: str, split: Split, rng: random.Random) -> Asked:
        """One of the questions, by `rng`. Raises Refused if there is none."""
        questions = self.questions(variant, split)
        if not questions:
            raise Refused(
                f"variant={variant!r}: has no rows of split {split.value!r}",
                "change eval_share, or evaluate on another variant",
            )
        return rng.choice(questions)

    def instances(self, variant: str, split: Split) -> int:
        """The number of different questions."""
        return len({question.instance for question in self.questions(variant, split)})

    def dealt(self, variant: str, split: Split) -> tuple[Item, ...]:
        return self._dealt.get((variant, split), ())

    @cached_property
    def _questions(self) -> dict[tuple[str, Split], tuple[Asked, ...]]:
        return {key: tuple(item.question for item in items) for key, items in self._dealt.items()}

    @cached_property
    def _dealt(self) -> dict[tuple[str, Split], tuple[Item, ...]]:
        dealt: dict[tuple[str, Split], list[Item]] = {}
        for item in self.items:
            for split in (self.split(item), Split.ALL):
                dealt.setdefault((item.variant, split), []).append(item)
        return {key: tuple(items) for key, items in dealt.items()}

    @cached_property
    def fields(self) -> frozenset[str]:
        """The fields that occur in some row."""
        return frozenset(field for item in self.items for field in item.question.data)

    @property
    def teaches(self) -> bool:
        """Whether rows have answers to learn from: all do, or none does."""
        return bool(self.items[0].question.lesson)

    def samples(self) -> list[Item]:
        """A few rows on which to try a scorer: one of every variant, and one of every set of fields."""
        of_a_kind: dict[object, Item] = {}
        for item in self.items:
            of_a_kind.setdefault(item.variant, item)
            of_a_kind.setdefault(frozenset(k for k, v in item.question.data.items() if v is not None), item)
        return list(dict.fromkeys(of_a_kind.values()))[:_MOST_TRIED]

    def split(self, item: Item) -> Split:
        """The split of a row: evaluation for held-out variants, by hash for the others."""
        if item.variant in self.held_out:
            return Split.EVAL
        return split_of(item.question.instance, self.settings.eval_share)


def load(settings: Settings) -> Table:
    """Load the table, once per process: each environment of a worker asks for it, and there may be hundreds.

    Raises Refused for rows that cannot be used, with file and line, and for variants without rows.
    """
    with _READING:
        return _load(settings)


@remembered(maxsize=8)
def _load(settings: Settings) -> Table:
    table = Table(settings, tuple(_items(settings)))
    _refuse_missing(table)
    _refuse_overlap(table)
    return table


def _items(settings: Settings) -> Iterator[Item]:
    """Every row, or none: bad rows are refused together."""
    bad = []
    for where, row, variant in _located(settings):
        try:
            question = asked(row, settings)
            yield Item(where, _variant(row, variant, settings), _scorable(question, settings))
        except BadRow as problem:
            bad.append(f"{where}: {problem}")
    if bad:
        raise Refused(
            f"{len(bad)} rows cannot be used: {_named(bad)}",
            "mend or remove them, or name other fields: prompt=, messages=, answer=, variant=, expert=",
        )


def _named(places: list[str]) -> str:
    more = f" and {len(places) - _MOST_NAMED} more" if len(places) > _MOST_NAMED else ""
    return f"{'; '.join(places[:_MOST_NAMED])}{more}"


def _located(settings: Settings) -> Iterator[tuple[str, Row, object]]:
    """Each row with its place and its variant, which may be None."""
    for where, row in read(settings.path):
        yield where, row, DEFAULT if settings.variant is None else row.get(settings.variant)
    if settings.held_out_path is not None:
        for where, row in read(settings.held_out_path):
            yield where, row, HELD_OUT


def _variant(row: Row, variant: object, settings: Settings) -> str:
    if isinstance(variant, str) and variant.strip():
        return variant
    raise BadRow(
        f"its field {settings.variant!r} is {_shown(row, str(settings.variant))}, but must name its variant"
    )


def _scorable(question: Asked, settings: Settings) -> Asked:
    """The question, if a ready scorer can score it. Raises BadRow otherwise."""
    row = question.data
    if compares(settings) and applies(row, settings.answer, settings):
        answer = row.get(settings.answer)
        if not is_answer(answer):
            raise BadRow(
                f"its field {settings.answer!r} is {_shown(row, settings.answer)}, but must be an answer"
            )
        if "number" in settings.score and answer_number(answer, settings) is None:
            raise BadRow(f"its field {settings.answer!r} has no number: {str(answer)[:40]!r}")
    if "code" in settings.score and applies(row, settings.tests, settings):
        _refuse_no_tests(row, settings.tests)
    return question


def _refuse_no_tests(row: Row, field: str) -> None:
    from rlpost.envs.scorers.code_tests import read_tests, refuse_no_python

    try:
        refuse_no_python(read_tests(row.get(field)))
    except ValueError as error:
        raise BadRow(f"its field {field!r} is {_shown(row, field)}, but must be tests: {error}") from error


def _shown(row: Row, field: str) -> str:
    return repr(row[field])[:40] if field in row else f"missing (there are {', '.join(row)})"


def _refuse_missing(table: Table) -> None:
    settings, variants = table.settings, table.variants
    if not table.items:
        raise Refused(f"{settings.path}: has no rows", "give at least one")
    if missing := [name for name in settings.held_out if name not in variants]:
        raise Refused(
            f"held_out={missing}: no row is of that variant", f"there are: {', '.join(variants) or 'none'}"
        )
    without = [item.where for item in table.items if not item.question.lesson]
    if 0 < len(without) < len(table.items):
        raise Refused(
            f"{len(without)} of {len(table.items)} rows have no answer to learn from, and others have:"
            f" {_named(without)}",
            "give one to all or to none: in the field completion, the one that expert= names, or as the last message",
        )
    if not any(table.questions(name, Split.TRAIN) for name in variants):
        raise Refused(
            f"{settings.path}: has {len(table.items)} rows, none of them to train on",
            f"give more rows, or less eval_share than {settings.eval_share:g}",
        )


def _refuse_overlap(table: Table) -> None:
    """Raise Refused if a prompt is both trained on and held out, under whichever variants."""
    trained = {i.question.instance: i.where for i in table.items if table.split(i) is Split.TRAIN}
    both = [
        f"{trained[i.question.instance]} and {i.where}"
        for i in table.items
        if table.split(i) is Split.EVAL and i.question.instance in trained
    ]
    if both:
        raise Refused(
            f"{len(both)} prompts are both trained on and held out: {'; '.join(both[:_MOST_NAMED])}",
            "remove each from one of the two",
        )
