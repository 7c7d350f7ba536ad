"""Trajectories as lines of JSON that people can read and `from_line` restores exactly.

Text is written as UTF-8; what UTF-8 cannot encode (lone surrogates) is written as JSON escapes. Strict JSON has no NaN
and no infinities, so a number that is not finite is written as the string "nan", "inf" or "-inf". One case is not
restored: JSON reads the two halves of a surrogate pair, side by side, as the character that they spell.
"""

from __future__ import annotations

import json
import math
from typing import Any

from rlpost.config.former_words import translated_episode
from rlpost.types import Ending, Finish, Trajectory, Turn


def encode(record: object) -> bytes:
    """One line of strict JSON, newline included. Raises ValueError for numbers that are not finite."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    # json leaves surrogates alone; backslashreplace writes them as \udXXX, which is JSON's own escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def to_line(trajectory: Trajectory) -> bytes:
    """One episode as a line of JSON. Its `reward` is the sum over turns, for the reader's convenience."""
    t = trajectory
    return encode(
        {
            "env": t.env,
            "variant": t.variant,
            "split": t.split,
            "instance": t.instance,
            "iteration": t.iteration,
            "episode": t.episode,
            "group": t.group,
            "seed": t.seed,
            "success": t.success,
            "reward": _to_number(t.total_reward),
            "ending": t.ending.value,
            "error": t.error,
            "difficulty": t.difficulty,
            "final_answer": t.final_answer,
            **({} if t.player is None else {"player": t.player}),
            "turns": [_from_turn(turn) for turn in t.turns],
        }
    )


def from_line(line: bytes) -> Trajectory:
    """Inverse of `to_line`. Raises ValueError for anything `to_line` did not write."""
    record = json.loads(line)
    try:
        fields = translated_episode(record)
        fields.pop("reward")
        turns = tuple(_to_turn(turn) for turn in fields.pop("turns"))
        return Trajectory(turns=turns, ending=Ending(fields.pop("ending")), **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an episode as rlpost writes it ({error})") from error


def _from_turn(turn: Turn) -> dict[str, Any]:
    env_reward = {} if turn.env_reward is None else {"env_reward": _to_number(turn.env_reward)}
    return {
        "observation": turn.observation,
        "answer": turn.answer,
        "outcome": turn.outcome,
        "reward": _to_number(turn.reward),
        **env_reward,
        "finish": turn.finish.value,
        "context_ids": list(turn.context_ids),
        "answer_ids": list(turn.answer_ids),
        "logprobs": [_to_number(x) for x in turn.logprobs],
        "policy_version": turn.policy_version,
        "thought_tokens": turn.thought_tokens,
        **({"parts": {name: _to_number(value) for name, value in turn.parts}} if turn.parts else {}),
        "opens_sample": turn.opens_sample,
        **({} if turn.reported_tokens is None else {"reported_tokens": turn.reported_tokens}),
    }


def _to_turn(record: dict[str, Any]) -> Turn:
    fields = dict(record)
    if "env_reward" in fields:
        fields["env_reward"] = _from_number(fields["env_reward"])
    return Turn(
        context_ids=tuple(fields.pop("context_ids")),
        answer_ids=tuple(fields.pop("answer_ids")),
        logprobs=tuple(_from_number(x) for x in fields.pop("logprobs")),
        reward=_from_number(fields.pop("reward")),
        finish=Finish(fields.pop("finish")),
        parts=tuple((name, _from_number(value)) for name, value in fields.pop("parts", {}).items()),
        **fields,
    )


def _to_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _from_number(value: float | str) -> float:
    if isinstance(value, str) and value not in ("nan", "inf", "-inf"):
        raise ValueError(f"{value!r} is no number")
    return float(value)
