"""A session of an OpenEnv server as an environment of texts. Variants, splits and success: envs/adapter.py."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from rlpost.envs.errors import Refused
from rlpost.envs.messages import Message, Said
from rlpost.envs.openenv.actions import (
    LIST_TOOLS,
    action_field,
    calls_tools,
    result_of,
    said_fields,
    text_of,
    tools_of,
)
from rlpost.envs.openenv.connection import Address, InvalidAction, Observation, Session, schemas
from rlpost.envs.openenv.settings import SEED, Settings
from rlpost.envs.parsing import MAX_ANSWER
from rlpost.envs.texts import AnySaid, AnyText
from rlpost.envs.tool_calls import Malformed, tool_calls

_MAX_OBSERVATION = 10_000_000  # characters
_INTRODUCTION = "Use the tools."  # where a server with tools says nothing itself


class OpenEnv(gymnasium.Env[Said, str]):
    """Text becomes one field of an action; of a server with tools, an answer's calls become actions.

    Outcomes of its own: INVALID_ACTION (not of the server's schema: the model is told, the episode goes on),
    MALFORMED_CALL (likewise), NO_CALL (an answer without a call ends the episode).
    """

    def __init__(self, server: Address, settings: Settings) -> None:
        self.observation_space = AnySaid(_MAX_OBSERVATION)
        self.action_space = AnyText(MAX_ANSWER)
        self.tools: Sequence[Mapping[str, Any]] = ()
        self._settings = settings
        schema = schemas(server, settings.timeout_s)["action"]
        self._field = None if calls_tools(schema) else _refused(server, action_field, schema, settings)
        self._server, self._session = server, Session(server, settings.timeout_s)
        self._rng = random.Random()
        self._shown: tuple[str, ...] = ()
        self._turns: int | None = None  # of the present episode; none between episodes

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Said, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._rng = random.Random(seed)
        drawn = self._rng.randrange(2**31)
        self._turns = None
        first = self._session.reset({**self._settings.reset, "seed": drawn})
        if first.done:
            raise Refused(
                f"openenv:{self._server.url}: an episode is over before anything is asked",
                "see env_args.reset",
            )
        said = self._opening(first)
        self._turns = 0
        return said, {"instance": f"seed-{drawn}"} if self._settings.instance == SEED else {}

    def step(self, action: str) -> tuple[Said, float, bool, bool, dict[str, Any]]:
        if self._turns is None:
            raise ResetNeeded("the episode is over, or none has begun: call reset first")
        self._turns += 1
        said, reward, done, info = (
            self._called(action) if self._field is None else self._acted(self._field, action)
        )
        truncated = (
            not done and self._settings.max_turns is not None and self._turns >= self._settings.max_turns
        )
        if done or truncated:
            self._turns = None
        return said, reward, done, truncated, info

    def close(self) -> None:
        self._session.close()

    def _opening(self, first: Observation) -> Said:
        if self._field is not None:
            self._shown = _refused(self._server, said_fields, first.fields, self._settings)
            return text_of(first.fields, self._shown)
        self.tools = _refused(self._server, tools_of, self._session.step(LIST_TOOLS).fields)
        if self._settings.observation_field:
            return text_of(first.fields, _refused(self._server, said_fields, first.fields, self._settings))
        return _INTRODUCTION

    def _acted(self, name: str, action: str) -> tuple[Said, float, bool, dict[str, Any]]:
        try:
            found = self._session.step({**self._settings.action, name: action})
        except InvalidAction as refused:
            return str(refused), 0.0, False, {"outcome": "INVALID_ACTION", "success": False}
        return text_of(found.fields, self._shown), found.reward, found.done, {}

    def _called(self, action: str) -> tuple[Said, float, bool, dict[str, Any]]:
        """Every call of an answer, in its order, until one of them ends the episode."""
        calls = tool_calls(action, {tool["function"]["name"] for tool in self.tools})
        if not calls:
            return "", 0.0, True, {"outcome": "NO_CALL", "success": False}
        said: list[Message] = []
        reward, info = 0.0, dict[str, Any]()
        for call in calls:
            if isinstance(call, Malformed):
                said.append(Message.of("tool", call.value))
                info = {"outcome": "MALFORMED_CALL", "success": False}
                continue
            data = {"type": "call_tool", "tool_name": call.name, "arguments": dict(call.arguments)}
            try:
                found = self._session.step({**self._settings.action, **data})
            except InvalidAction as refused:
                said.append(Message.of("tool", str(refused)))
                info = {"outcome": "INVALID_ACTION", "success": False}
                continue
            said.append(result_of(found.fields))
            reward += found.reward
            if found.done:
                return tuple(said), reward, True, {}
        return tuple(said), reward, False, info


def _refused(server: Address, choose: Any, *given: Any) -> Any:
    """What `choose` finds. Its refusal names the server."""
    try:
        return choose(*given)
    except Refused as error:
        raise Refused(f"openenv:{server.url}: {error.reason}", error.remedy) from error
