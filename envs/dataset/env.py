"""A data set of prompts with scoring functions, as an environment of one turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from rlpost.envs.base import ExpertTurn
from rlpost.envs.dataset.conversation import Asked
from rlpost.envs.dataset.remarks import remarks
from rlpost.envs.dataset.rewards import Scorer
from rlpost.envs.dataset.scoring import READY, is_answer
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.dataset.table import Item, Table
from rlpost.envs.errors import Refused
from rlpost.envs.messages import Said
from rlpost.envs.one_turn import OneTurn, Question, Verdict
from rlpost.envs.splits import Split


class Dataset(OneTurn):
    """A row's prompt, one answer, its reward. See envs/dataset/settings.py for the arguments.

    If a function raises, or returns something that is not a reward, `step` raises: the rollout counts the episode as
    broken.
    """

    def __init__(self, settings: Settings, table: Table) -> None:
        self._settings, self._table = settings, table
        self._score = Scorer(settings, table.fields)
        self.scores = bool(settings.score)
        super().__init__(self._table.variants)

    def draw(self, variant: str, split: Split, rng: random.Random) -> Asked:
        return self._table.drawn(variant, split, rng)

    def instances(self, variant: str, split: str) -> int:
        """The number of different prompts among the rows."""
        return self._table.instances(variant, Split(split))

    def prompts(self, variant: str, split: str) -> list[tuple[str, Said]]:
        return [(item.where, item.question.observation) for item in self._table.dealt(variant, Split(split))]

    def remarks(self) -> list[str]:
        return remarks(self._table)

    def rehearsals(self) -> list[tuple[str, Callable[[], object]]]:
        """Calls of the functions on a few rows: with an empty answer, and with the row's own answer if it has one."""
        if set(self._settings.score) <= {"exact", "number"}:
            return []
        return [
            (
                f"score={','.join(self._settings.score)} of the answer {answer[:40]!r} to {item.where}",
                partial(self.grade, item.question, answer),
            )
            for item in self._table.samples()
            for answer in ("", *self._own_answer(item))
        ]

    def _own_answer(self, item: Item) -> list[str]:
        if item.question.lesson:
            return [item.question.lesson[-1][1]]
        given = item.question.data.get(self._settings.answer)
        return [str(given)] if is_answer(given) else []

    def grade(self, question: Question, answer: str) -> Verdict:
        assert isinstance(question, Asked), "questions are drawn here"
        if not self.scores:
            raise Refused(
                "no score= is given", "env_args.score=my_module:score, or one of " + ", ".join(READY)
            )
        return self._score(answer, question)

    def close(self) -> None:
        self._score.close()


class Taught(Dataset):
    """A data set whose rows contain right answers."""

    def expert(self, revision: bool, rng: random.Random) -> list[ExpertTurn]:
        """The row's conversation. Nothing is revised, so `revision` has no effect."""
        question = self.question
        assert isinstance(question, Asked), "questions are drawn here"
        return list(question.lesson)

    def lessons(self, variant: str, split: str) -> Sequence[tuple[str, Sequence[ExpertTurn]]]:
        asked = self._table.questions(variant, Split(split))
        return [(question.instance, question.lesson) for question in asked]
