"""An environment whose answers may call a tool, and whose prompt is several messages: for tests."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import gymnasium

from rlpost.envs.messages import Message, Said
from rlpost.envs.texts import AnySaid, AnyText
from rlpost.envs.tool_calls import Malformed, tool_calls

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers; an answer ends with <|eot_id|> or <|im_end|>.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}


class Calculator(gymnasium.Env[Said, str]):
    """Asks for a sum; an answer that calls nothing is the last."""

    tools: ClassVar[list[dict[str, Any]]] = [ADD]

    def __init__(self) -> None:
        self.observation_space, self.action_space = AnySaid(1000), AnyText(1000)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Said, dict[str, Any]]:
        super().reset(seed=seed)
        self.a, self.b = (int(n) for n in self.np_random.integers(100, 1000, 2))
        self.left = 3
        shots = (Message.of("user", "1 + 1 =?"), Message.of("assistant", "2"))
        return (*shots, Message.of("user", f"{self.a} + {self.b} =?")), {"instance": f"{self.a}+{self.b}"}

    def step(self, action: str) -> tuple[Said, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        calls = tool_calls(action, ["add"])
        if calls:
            info = {"outcome": "CALL", "success": False}
            return [self.result(call) for call in calls], 0.0, False, self.left == 0, info
        success = action.strip() == str(self.a + self.b)
        return (
            "",
            float(success),
            True,
            False,
            {"outcome": "SUM" if success else "NO_SUM", "success": success},
        )

    @staticmethod
    def result(call: Any) -> Message:
        if isinstance(call, Malformed):
            return Message.of("tool", call.value)
        try:
            return Message.of("tool", json.dumps({"sum": call.arguments["a"] + call.arguments["b"]}))
        except (KeyError, TypeError):
            return Message.of("tool", "add takes two numbers, a and b")
