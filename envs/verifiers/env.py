"""A verifiers environment as one of rlpost's."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from rlpost.envs.adapter import ONLY_VARIANT
from rlpost.envs.choices import Mode
from rlpost.envs.errors import Refused
from rlpost.envs.messages import Message, Said
from rlpost.envs.parsing import MAX_ANSWER
from rlpost.envs.reset_options import variant_and_split
from rlpost.envs.splits import Split
from rlpost.envs.texts import AnySaid, AnyText
from rlpost.envs.verifiers.conversation import answer_of, message_of, tool_of
from rlpost.envs.verifiers.package import load
from rlpost.envs.verifiers.player import Asked, Episode, Failures, Loop, Scored
from rlpost.envs.verifiers.rows import Row, rows

_MAX_OBSERVATION = 10_000_000  # characters
_PASS_THRESHOLD = 0.5  # verifiers' own default, of versions that do not say it


class Verifiers(gymnasium.Env[Said, str]):
    """Plays rows of a verifiers environment; the rubric's weighted sum is the reward of the last answer.

    Outcomes: SUCCESS (a reward of at least the environment's `pass_threshold`), MALFORMED_CALL (the last answer has a
    tool call that cannot be read, and no success), FAILURE, and CONTINUED. An episode that ends before the environment
    ends it, by the length of the context, is not scored.
    """

    def __init__(self, env_id: str, args: Mapping[str, Any]) -> None:
        self.observation_space = AnySaid(_MAX_OBSERVATION)
        self.action_space = AnyText(MAX_ANSWER)
        self._id, self._rows, self._env = env_id, rows(env_id, args), load(env_id, args)
        self._failures, self._loop, self._rng = Failures(self._env.rubric), Loop(), random.Random()
        self._episode: Episode | None = None
        self._heard: list[Message] = []  # the conversation so far, but for an answer that waits for a reply
        self.tools: Sequence[Mapping[str, Any]] = ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Said, dict[str, Any]]:
        _, split = variant_and_split(
            options, {ONLY_VARIANT.name: ONLY_VARIANT}, ONLY_VARIANT.name, Mode.MENDED
        )
        super().reset(seed=seed)
        if seed is not None:
            self._rng = random.Random(seed)
        self._end()
        row = self._drawn(split)
        self._heard = []
        self._episode = Episode(self._env, row.data, self._loop, self._failures)
        asked = self._episode.begin()
        if isinstance(asked, Scored):
            raise Refused(
                f"verifiers:{self._id}, {row.where}: it is over before anything is asked ({asked.stop})",
                "leave such rows out",
            )
        self.tools = tuple(map(tool_of, asked.tools))
        return self._news(asked), {"instance": row.instance}

    def step(self, action: str) -> tuple[Said, float, bool, bool, dict[str, Any]]:
        if self._episode is None:
            raise ResetNeeded("the episode is over, or none has begun: call reset first")
        answer = answer_of(action, bool(self.tools))
        reply = self._episode.answer(answer)
        if isinstance(reply, Asked):
            return self._news(reply), 0.0, False, False, {"outcome": "CONTINUED", "success": False}
        self._episode = None
        success = reply.reward >= getattr(self._env, "pass_threshold", _PASS_THRESHOLD)
        failed = "FAILURE" if answer.malformed is None else "MALFORMED_CALL"
        info = {"outcome": "SUCCESS" if success else failed, "success": success, "parts": dict(reply.parts)}
        return tuple(map(message_of, reply.last)) or "", reply.reward, True, False, info

    def close(self) -> None:
        self._end()
        self._loop.close()

    def instances(self, variant: str, split: str) -> int:
        return len(self._rows.by_split[Split(split)])

    def prompts(self, variant: str, split: str) -> list[tuple[str, Said]]:
        return [(row.where, row.said) for row in self._rows.by_split[Split(split)]]

    def remarks(self) -> list[str]:
        return list(self._rows.remarks)

    def _drawn(self, split: Split) -> Row:
        there = self._rows.by_split[split]
        if not there:
            raise Refused(
                f"verifiers:{self._id}: it has no rows of split {split.value!r}",
                "give it more rows: see its arguments",
            )
        return self._rng.choice(there)

    def _end(self) -> None:
        if self._episode is not None:
            self._episode.close()
            self._episode = None

    def _news(self, asked: Asked) -> Said:
        """The messages since the last answer. Refused where what was said before has changed."""
        conversation = list(map(message_of, asked.prompt))
        known = len(self._heard)
        answered = 1 if known else 0
        if conversation[:known] != self._heard or len(conversation) <= known + answered:
            raise Refused(
                f"verifiers:{self._id}: it changes what was said before, or adds nothing to it",
                "only conversations that grow are carried",
            )
        news = conversation[known + answered :]
        self._heard = conversation
        return tuple(news)
