"""Finds the formula in a model's answer (mended mode), in time linear in the answer's length."""

from __future__ import annotations

from rlpost.envs.generalpoints.outcomes import Outcome
from rlpost.envs.parsing import MAX_ANSWER, last_near_json, last_object, near_json

MAX_FORMULA = 200  # characters

_TOLERANT = near_json("formula", r"[0-9(][-+*/()=0-9 ]*")


def find_formula(answer: str) -> str | Outcome:
    """The formula as written, up to its first `=`; or the reason why there is none: NO_FORMULA or TOO_LONG."""
    if len(answer) > MAX_ANSWER:
        return Outcome.TOO_LONG
    strict = last_object(answer, "formula")
    formula = strict["formula"] if strict is not None else None
    if formula is None:
        formula = last_near_json(_TOLERANT, answer)
    if not isinstance(formula, str):
        return Outcome.NO_FORMULA
    if len(formula) > MAX_FORMULA:
        return Outcome.TOO_LONG
    return formula.split("=", 1)[0]
