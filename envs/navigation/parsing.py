"""Reads the action and the observation from a model's answer (mended mode), in time linear in the answer's length."""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.envs.navigation.outcomes import Outcome
from rlpost.envs.parsing import MAX_ANSWER, last_near_json, last_object, near_json

_ACTION = near_json("action", r"[a-z_]+\([a-z ]*\)")
_OBSERVATION = near_json("(?:current )?observation", r"(?!)")


@dataclass(frozen=True)
class Answer:
    action: str  # as written
    observation: str  # empty if none was found


def read_answer(text: str) -> Answer | Outcome:
    """The fields of the answer; or the reason why there is no action: NO_ACTION or TOO_LONG."""
    if len(text) > MAX_ANSWER:
        return Outcome.TOO_LONG
    strict = last_object(text, "action")
    if strict is not None:
        observations = [strict[key] for key in ("current observation", "observation") if key in strict]
        action, observation = strict["action"], observations[0] if observations else ""
    else:
        action, observation = last_near_json(_ACTION, text), last_near_json(_OBSERVATION, text) or ""
    if not isinstance(action, str):
        return Outcome.NO_ACTION
    return Answer(action, observation if isinstance(observation, str) else "")
