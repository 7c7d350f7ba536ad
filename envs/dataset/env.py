"""A data set of prompts with a scoring function, as an environment of one turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from rlpost.envs.dataset.remarks import remarks
from rlpost.envs.dataset.scoring import compares, is_answer, scorer, verdict
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.dataset.table import load
from rlpost.envs.errors import Refused
from rlpost.envs.messages import Said
from rlpost.envs.one_turn import Demonstrates, OneTurn, Question, Verdict
from rlpost.envs.splits import Split


class Dataset(OneTurn):
    """A row's prompt, one answer, its score. See envs/dataset/settings.py for the arguments.

    A scorer that raises, or returns what is no score, lets `step` raise: the rollout counts the episode as broken.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._table, self._score = settings, load(settings), scorer(settings)
        super().__init__(self._table.variants)

    def draw(self, variant: str, split: Split, rng: random.Random) -> Question:
        questions = self._table.questions(variant, split)
        if not questions:
            raise Refused(
                f"variant={variant!r}: has no rows of split {split.value!r}",
                "change eval_share, or evaluate on another variant",
            )
        return rng.choice(questions)

    def instances(self, variant: str, split: str) -> int:
        """The different prompts among the rows."""
        return len({question.instance for question in self._table.questions(variant, Split(split))})

    def prompts(self, variant: str, split: str) -> list[tuple[str, Said]]:
        return [(item.where, item.question.observation) for item in self._table.dealt(variant, Split(split))]

    def remarks(self) -> list[str]:
        return remarks(self._table)

    def rehearsals(self) -> list[tuple[str, Callable[[], object]]]:
        """A user's scorer, asked of a few rows: for no answer, and for the row's own where it has one."""
        if compares(self._settings):
            return []
        return [
            (
                f"score={self._settings.score} of the answer {answer[:40]!r} to {item.where}",
                partial(self.grade, item.question, answer),
            )
            for item in self._table.samples()
            for answer in ("", *self._own_answer(item.question))
        ]

    def _own_answer(self, question: Question) -> list[str]:
        given = question.data.get(self._settings.expert or self._settings.answer)
        return [str(given)] if is_answer(given) else []

    def grade(self, question: Question, answer: str) -> Verdict:
        return verdict(self._score(answer, question.data), self._settings)


class Taught(Demonstrates, Dataset):
    """A data set whose rows hold a whole right answer."""

    def right_answer(self, question: Question) -> str:
        return str(question.data[self._settings.expert])
