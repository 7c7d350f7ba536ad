"""The checked arguments of the environment. A bad one is refused with its key, its value and the choices."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rlpost.envs.choices import Mode, choose, whole
from rlpost.envs.navigation.prompts import AnswerForm, PromptStyle
from rlpost.envs.navigation.variants import VARIANTS, Variant
from rlpost.envs.reset_options import variant_and_split
from rlpost.envs.splits import Split

DEFAULT_VARIANT = "absolute"
MOST_LEGS = 10


class Movement(StrEnum):
    RAIL = "rail"  # published: a wrong action leads nowhere, a right one to the next place
    FREE = "free"  # actions are carried out; stopping near the destination is arriving


@dataclass(frozen=True)
class Settings:
    mode: Mode
    prompt: PromptStyle
    answer_form: AnswerForm
    verify_iter: int  # graded attempts at each place
    movement: Movement
    max_legs: int  # longest route for training
    data: str  # folder of published routes or file of an OpenStreetMap extract; empty: generated cities

    @staticmethod
    def checked(
        mode: str, prompt: str, answer_form: str, verify_iter: int, movement: str, max_legs: int, data: str
    ) -> Settings:
        settings = Settings(
            choose(Mode, "mode", mode),
            choose(PromptStyle, "prompt", prompt),
            choose(AnswerForm, "answer_form", answer_form),
            whole("verify_iter", verify_iter, 1, None, "attempts"),
            choose(Movement, "movement", movement),
            whole("max_legs", max_legs, 1, MOST_LEGS, "legs"),
            data,
        )
        if settings.mode is Mode.COMPAT and settings.movement is Movement.FREE:
            raise ValueError(
                "movement='free': mode='compat' is the published rail; use movement='rail' or mode='mended'"
            )
        if not isinstance(data, str):
            raise ValueError(f"data={data!r}: must be the path of a folder or file, or empty")
        return settings

    def options(self, given: dict[str, Any] | None) -> tuple[Variant, Split]:
        """The variant and split for a reset."""
        return variant_and_split(given, VARIANTS, DEFAULT_VARIANT, self.mode)
