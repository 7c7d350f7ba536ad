"""GeneralPoints-L as a Gymnasium environment: text in, text out."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from rlpost.envs.base import ExpertTurn
from rlpost.envs.choices import Mode
from rlpost.envs.generalpoints import compat, verifier
from rlpost.envs.generalpoints.deck import Deal, deal, deal_named, problems
from rlpost.envs.generalpoints.expert import chosen, demonstrate, preferred
from rlpost.envs.generalpoints.expression import Expression
from rlpost.envs.generalpoints.misread import follows, obeys
from rlpost.envs.generalpoints.outcomes import CAUSES, Outcome, Verdict
from rlpost.envs.generalpoints.prompts import prompt
from rlpost.envs.generalpoints.settings import DEFAULT_VARIANT, Settings
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.generalpoints.variants import VARIANTS, RuleWords
from rlpost.envs.generalpoints.wording import Wording, held_out_rule, other_rule, varied_rule
from rlpost.envs.parsing import MAX_ANSWER
from rlpost.envs.splits import Split
from rlpost.envs.texts import ASCII, UNEXPLAINED, retry

_MAX_OBSERVATION = 2_000_000  # characters: compat feedback has a sentence for every misplaced token

_SOLVED_AT_RESET = 4  # cards: four take 3 ms, five take 130 ms
# (largest number of solutions, the label), the hardest first; each covers a fair share of the deals of four cards.
_DIFFICULTIES = ((0, "none"), (1, "1"), (5, "2 to 5"), (12, "6 to 12"), (math.inf, "13 or more"))


class GeneralPoints(gymnasium.Env[str, str]):
    """Combine cards with + - * / to reach a target, with feedback and further attempts (arXiv 2501.17161).

    Args:
        mode: `mended` (exact; one outcome per attempt; the last failed attempt truncates) or `compat`
            (published rewards and faults; an ungraded, punished attempt after the last graded one truncates).
        prompt: `short` or `published`.
        answer_form: the form of the expert's answers: `steps`, `direct` or `published`. The verifier reads all forms.
        verify_iter: graded attempts per episode.
        feedback: `full`, or `leak_free`, which never names the cards' numbers (mended only).
        wording: `fixed`, or `varied`, which states the rule of training deals in different words each time.
        solutions: the solutions that the expert shows of a deal: `any`, different ones, or always the same `one`.

    `reset` takes options `variant` (a name of VARIANTS), `split` (`train`, `eval`, `all`) and `instance` (a name of
    `instance_names`; left out: drawn). Its info has `instance`, `ranks`, `values` and `difficulty` (the number of
    solutions; None in training and for five cards); the info of `step` has `outcome`, `success` and `attempt` (from 1).

    The action space lists printable ASCII; `step` grades any string.
    Raises ValueError for bad arguments and options, DealError if a variant cannot be dealt.
    """

    causes = CAUSES

    def __init__(
        self,
        mode: str = "mended",
        prompt: str = "short",
        answer_form: str = "steps",
        verify_iter: int = 5,
        feedback: str = "full",
        wording: str = "fixed",
        solutions: str = "any",
    ) -> None:
        self.settings = Settings.checked(mode, prompt, answer_form, verify_iter, feedback, wording, solutions)
        self.observation_space = Text(_MAX_OBSERVATION, min_length=1, charset=ASCII)
        self.action_space = Text(MAX_ANSWER, min_length=0, charset=ASCII)
        self._rng = random.Random()
        self._deal: Deal | None = None
        self._rule: str | None = None
        self._attempts = 0
        self._over = True

    @property
    def deal(self) -> Deal:
        """The cards on the table. Raises ResetNeeded before the first reset."""
        if self._deal is None:
            raise ResetNeeded("no cards are dealt yet: call reset first")
        return self._deal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        variant, split = self.settings.options(options)
        super().reset(seed=seed)
        if seed is not None:
            self._rng = random.Random(seed)
        named = (options or {}).get("instance")
        if named is None:
            self._deal = deal(variant, split, self._rng)
        else:
            self._deal = deal_named(variant, split, named, self._rng)
        self._rule = self._stated_rule(split)
        self._attempts, self._over = 0, False
        info = {
            "instance": self.deal.instance,
            "ranks": list(self.deal.ranks),
            "values": list(self.deal.values),
            "difficulty": self._difficulty(split),
        }
        return self._first_observation(), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise ResetNeeded("the episode is over, or none has begun: call reset first")
        self._attempts += 1
        verdict = self._grade_attempt(action)
        success = verdict.outcome is Outcome.CORRECT
        truncated = not success and self._is_last_attempt()
        self._over = success or truncated
        observation = verdict.feedback if self._over else retry(verdict.feedback)
        info = {
            "outcome": self._named(verdict).name,
            "success": success,
            "attempt": self._attempts,
        }
        return observation, verdict.reward, success, truncated, info

    def grade(self, answer: str) -> Verdict:
        """The verdict on an answer to the cards on the table. It does not change the episode."""
        verdict = self._grade(answer)
        unexplained = self.deal.variant.fake_rule and verdict.outcome is not Outcome.CORRECT
        return replace(verdict, feedback=UNEXPLAINED) if unexplained else verdict

    def _grade(self, answer: str) -> Verdict:
        if self.settings.mode is Mode.COMPAT:
            return compat.grade(answer, self.deal.values, self.deal.variant.target)
        return verifier.grade(answer, self.deal.values, self.deal.variant.target, self.settings.feedback)

    def instances(self, variant: str, split: str) -> int:
        """The number of problems of a variant, which does not depend on how their cards are named."""
        return len(self.instance_names(variant, split))

    def instance_names(self, variant: str, split: str) -> Sequence[str]:
        """The names of all problems of a variant, sorted as texts."""
        return sorted(problems(*self.settings.options({"variant": variant, "split": split})))

    def expert(self, revision: bool, rng: random.Random) -> list[ExpertTurn]:
        """A conversation that solves the cards: [(observation, answer, learn)], with a right last answer.

        With `revision`, a wrong attempt (learn=False) and its real feedback come first.
        """
        solution = chosen(self._solutions(), self.settings.solutions, rng)
        form = self.settings.answer_form
        return demonstrate(self._first_observation(), self.deal, solution, form, self.grade, revision, rng)

    def read_line(self, line: str) -> str:
        """A typed line as an answer: a bare formula is put into JSON; a line with a brace stays as it is."""
        return line if "{" in line else json.dumps({"formula": line})

    def hint(self, rng: random.Random) -> str:
        """The formula of a solution."""
        return rng.choice(preferred(self._solutions())).formula()

    def _first_observation(self) -> str:
        return prompt(self.settings.prompt, self.deal.variant, self.deal.ranks, self._rule)

    def _difficulty(self, split: Split) -> str | None:
        """The number of solutions as a label; None if a reset should not wait for the solver."""
        if split is Split.TRAIN or len(self.deal.values) > _SOLVED_AT_RESET:
            return None
        solutions = len(self._solutions())
        return next(f"solutions: {words}" for most, words in _DIFFICULTIES if solutions <= most)

    def _stated_rule(self, split: Split) -> str | None:
        """The rule in words. None means the fixed words, which evaluation uses unless the variant says otherwise."""
        if self.deal.variant.words is not RuleWords.FIXED:
            told = other_rule if self.deal.variant.words is RuleWords.REWORDED else held_out_rule
            return told(self.deal.variant.stated_faces, self._rng)
        if self.settings.wording is Wording.FIXED or split is not Split.TRAIN:
            return None
        return varied_rule(self.deal.variant.stated_faces, self._rng)

    def _grade_attempt(self, answer: str) -> Verdict:
        if self._attempts > self.settings.verify_iter:
            return compat.step_limit()
        return self.grade(answer)

    def _is_last_attempt(self) -> bool:
        ungraded = 1 if self.settings.mode is Mode.COMPAT else 0
        return self._attempts == self.settings.verify_iter + ungraded

    def _named(self, verdict: Verdict) -> Outcome:
        """The verdict's outcome. Attempts get outcomes of their own that apply the trained rule where another one
        scores, or the stated rule where that is fake."""
        if obeys(verdict, self.deal):
            return Outcome.STATED_RULE
        misread = follows(VARIANTS[DEFAULT_VARIANT], verdict, self.deal)
        return Outcome.RULE_MISREAD if misread else verdict.outcome

    def _solutions(self) -> tuple[Expression, ...]:
        """Solutions that earn the full reward. In compat: those that pass the float test, or all if none passes."""
        target = self.deal.variant.target
        solutions = solve(self.deal.values, target)
        if self.settings.mode is Mode.MENDED:
            return solutions
        return tuple(s for s in solutions if compat.passes_float_test(s.formula(), target)) or solutions
