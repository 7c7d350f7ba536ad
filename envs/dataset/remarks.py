"""Reports irregularities in a data set whose rows are all usable: prompts that repeat, or have two answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rlpost.envs.dataset.scoring import answer_number
from rlpost.envs.dataset.table import Item, Table

_MOST_FIELDS = 3
_SAID_ELSEWHERE = ("tools", "chat_template_kwargs")  # fields that TRL gives to the chat template


def remarks(table: Table) -> list[str]:
    """One sentence for each irregularity."""
    return [*_repeats(table), *_gaps(table), *_unsaid(table)]


def _repeats(table: Table) -> Iterator[str]:
    """Repeated prompts, wherever their rows are, and prompts with different right answers."""
    first: dict[str, Item] = {}
    again, differ = list[tuple[Item, Item]](), list[tuple[Item, Item]]()
    for item in table.items:
        known = first.setdefault(item.question.instance, item)
        if known is not item:
            pair = (known, item)
            again.append(pair)
            if _answer(table, known) != _answer(table, item):
                differ.append(pair)
    if again:
        yield f"{len(again)} of {len(table.items)} rows repeat the prompt of an earlier one, such as {_named(again[0])}"
    if differ:
        yield f"{len(differ)} of these have another answer than the earlier one, such as {_named(differ[0])}"


def _named(pair: tuple[Item, Item]) -> str:
    return f"{pair[0].where} and {pair[1].where}"


def _answer(table: Table, item: Item) -> object:
    settings, row = table.settings, item.question.data
    given = row.get(settings.answer)
    if "number" in settings.score and given is not None:
        return answer_number(given, settings)
    return given if given is not None else item.question.lesson


def _gaps(table: Table) -> Iterator[str]:
    """Fields that some rows have and others lack: a scorer that needs one fails on those rows."""
    has = Counter(
        key for item in table.items for key, value in item.question.data.items() if value is not None
    )
    lacking = {key: len(table.items) - count for key, count in has.items() if count < len(table.items)}
    for key, count in sorted(lacking.items(), key=lambda each: (each[0] != table.settings.answer, each))[
        :_MOST_FIELDS
    ]:
        yield f"{count} of {len(table.items)} rows have no {key!r}"


def _unsaid(table: Table) -> Iterator[str]:
    """A field by which other trainers change what the model is told."""
    for field in _SAID_ELSEWHERE:
        if count := sum(bool(item.question.data.get(field)) for item in table.items):
            yield f"{count} of {len(table.items)} rows have {field!r}, which the chat template is not given"
