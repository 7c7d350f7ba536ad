"""The checked arguments of the environment. A bad one is refused with its key, its value and the choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlpost.envs.choices import Mode, choose, whole
from rlpost.envs.generalpoints.expert import Solutions
from rlpost.envs.generalpoints.feedback import FeedbackStyle
from rlpost.envs.generalpoints.prompts import AnswerForm, PromptStyle
from rlpost.envs.generalpoints.published_solutions import CARDS
from rlpost.envs.generalpoints.variants import VARIANTS, Variant
from rlpost.envs.generalpoints.wording import Wording
from rlpost.envs.reset_options import variant_and_split
from rlpost.envs.splits import Split

DEFAULT_VARIANT = "faces_10"


@dataclass(frozen=True)
class Settings:
    mode: Mode
    prompt: PromptStyle
    answer_form: AnswerForm
    verify_iter: int  # graded attempts per episode
    feedback: FeedbackStyle
    wording: Wording
    solutions: Solutions  # the solutions that the expert shows of a deal

    @staticmethod
    def checked(
        mode: str,
        prompt: str,
        answer_form: str,
        verify_iter: int,
        feedback: str,
        wording: str,
        solutions: str,
    ) -> Settings:
        settings = Settings(
            choose(Mode, "mode", mode),
            choose(PromptStyle, "prompt", prompt),
            choose(AnswerForm, "answer_form", answer_form),
            whole("verify_iter", verify_iter, 1, None, "attempts"),
            choose(FeedbackStyle, "feedback", feedback),
            choose(Wording, "wording", wording),
            choose(Solutions, "solutions", solutions),
        )
        if settings.mode is Mode.COMPAT and settings.feedback is FeedbackStyle.LEAK_FREE:
            raise ValueError(
                "feedback='leak_free': the published feedback of mode='compat' leaks; "
                "use feedback='full' or mode='mended'"
            )
        return settings

    def options(self, given: dict[str, Any] | None) -> tuple[Variant, Split]:
        """The variant and split for a reset. The published game has four cards."""
        variant, split = variant_and_split(given, VARIANTS, DEFAULT_VARIANT, self.mode, ("instance",))
        if self.mode is Mode.COMPAT and any(rule.cards != CARDS for rule in variant.rules()):
            raise ValueError(
                f"variant={variant.name!r}: mode='compat' plays with {CARDS} cards; use mode='mended'"
            )
        return variant, split
