"""A task of reasoning-gym as an environment of one turn, scored by the task's own scorer."""

from __future__ import annotations

import random

from rlpost.envs.adapter import MAX_RESETS
from rlpost.envs.errors import Refused
from rlpost.envs.one_turn import Demonstrates, OneTurn, Question, Verdict, instance_of
from rlpost.envs.reasoning_gym.tasks import TaskOf
from rlpost.envs.splits import Split, split_of

INSTRUCTION = "Write your final answer between <answer> and </answer>."


def tagged(text: str) -> str | None:
    """The text between the last <answer> and </answer>, as the package's own evaluation reads it."""
    before, closed, _ = text.rpartition("</answer>")
    _, opened, answer = before.rpartition("<answer>")
    return answer.strip() if opened and closed else None


class ReasoningGym(OneTurn):
    """A question, one answer and its score from 0 to 1; success is a score of 1.

    Outcomes: CORRECT, PARTIAL (a score between 0 and 1), WRONG, NO_ANSWER (no tag) and REFUSED (an answer that the
    scorer would run as code; see guard.py). NO_ANSWER and REFUSED earn 0.
    """

    def __init__(self, task: TaskOf, answer_tag: bool) -> None:
        super().__init__(task.variants)
        self._task, self._answer_tag = task, answer_tag
        self._variant = ""

    def draw(self, variant: str, split: Split, rng: random.Random) -> Question:
        self._variant = variant
        for _ in range(MAX_RESETS):
            entry = self._task.levels[variant].entry(rng.randrange(2**31))
            instance = instance_of(entry["question"])
            if split is Split.ALL or split_of(instance) is split:
                asked = entry["question"]
                told = f"{asked.rstrip()}\n{INSTRUCTION}" if self._answer_tag else asked
                return Question(told, instance, entry)
        raise Refused(
            f"reasoning_gym:{self._task.name}, {variant}: none of {MAX_RESETS} questions is of split {split.value!r}",
            "its settings allow too few different questions",
        )

    def grade(self, question: Question, answer: str) -> Verdict:
        said = tagged(answer) if self._answer_tag else answer.strip()
        if not said:
            return Verdict(0.0, "NO_ANSWER", False)
        if self._task.accepts is not None and not self._task.accepts(said):
            return Verdict(0.0, "REFUSED", False)
        score = self._task.score(self._variant, question.data, said)
        success = score >= 1
        return Verdict(score, "CORRECT" if success else "PARTIAL" if score > 0 else "WRONG", success)


class Answered(Demonstrates, ReasoningGym):
    """A task whose questions come with a right answer."""

    def right_answer(self, question: Question) -> str:
        answer = question.data["answer"]
        return f"<answer>{answer}</answer>" if self._answer_tag else str(answer)
