"""An episode that verifiers plays, from the model's side.

verifiers' `rollout` asks a client for answers and returns when the episode is over. Here the client is a `Client` of
verifiers that waits: `Episode.begin` runs the rollout until it asks, `Episode.answer` gives the answer and runs it
until it asks again, or is scored. So its turns, tools, stops and rubric are verifiers' own code.

    verifiers:  rollout() ── get_native_response ──▶ Asked(prompt, tools)      begin(), answer() return it
                          ◀─────────── Answer ─────                            answer(text)
                rubric.score_rollout() ────────────▶ Scored(reward, ...)

All of it runs in the caller's thread, on an event loop of the episode's environment, and stands still between calls.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from rlpost.envs.own import told
from rlpost.envs.verifiers.conversation import Answer
from rlpost.envs.verifiers.package import functions_of, package

_TICK_S = 0.2  # how often a wait comes back to Python, where the rollout's deadline can end it
_CLOSING_S = 5.0


class Broken(RuntimeError):
    """The environment, or one of its reward functions, failed. The episode has no reward."""


@dataclass(frozen=True)
class Asked:
    """The environment waits for an answer to `prompt`, the whole conversation in verifiers' own messages."""

    prompt: list[Any]
    tools: list[Any]


@dataclass(frozen=True)
class Scored:
    """The episode is over. `prompt` is what verifiers says last, after the last answer; empty for most."""

    reward: float
    parts: Mapping[str, float]  # each function's own value, without its weight
    stop: str  # the condition that ended it, by verifiers' name
    last: list[Any]


@dataclass
class _Desk:
    """Where a waiting request lies."""

    asked: asyncio.Queue[tuple[Asked, asyncio.Future[Answer]]] = field(default_factory=asyncio.Queue)
    answered: int = 0


@functools.cache
def _client_class() -> Any:
    """A client of verifiers whose answers come from `_Desk`. Made late: its base class is verifiers' own."""
    vf = package()
    from verifiers import types

    class Waiting(vf.Client):  # type: ignore[misc, name-defined]
        def setup_client(self, config: Any) -> Any:
            raise NotImplementedError("it is made with a desk")

        async def to_native_tool(self, tool: Any) -> Any:
            return tool

        async def to_native_prompt(self, messages: Any) -> tuple[Any, dict[str, Any]]:
            return messages, {}

        async def get_native_response(
            self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any
        ) -> Answer:
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            await self.client.asked.put((Asked(list(prompt), list(tools or ())), answer))
            return await answer

        async def raise_from_native_response(self, response: Answer) -> None:
            """Every answer is valid; an empty one too."""

        async def from_native_response(self, response: Answer) -> Any:
            self.client.answered += 1
            number = self.client.answered
            calls = [
                types.ToolCall(
                    id=f"call_{number}_{place}",
                    name=call.name,
                    arguments=json.dumps(call.arguments, ensure_ascii=False),
                )
                for place, call in enumerate(response.calls)
            ]
            message = types.ResponseMessage(
                content=response.content,
                tool_calls=calls or None,
                finish_reason="tool_calls" if calls else "stop",
                is_truncated=False,
            )
            return types.Response(
                id=f"answer_{number}", created=int(time.time()), model="rlpost", message=message
            )

        async def close(self) -> None:
            """Nothing to close."""

    return Waiting


class Loop:
    """An event loop that runs only while somebody waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def start(self, work: Any) -> asyncio.Task[Any]:
        return self._loop.create_task(work)

    def first(self, *tasks: asyncio.Task[Any], deadline: float | None = None) -> None:
        """Run until one of the tasks is done, or `time.monotonic()` reaches the deadline."""
        while not any(task.done() for task in tasks):
            if deadline is not None and time.monotonic() > deadline:
                return
            self._loop.run_until_complete(
                asyncio.wait(tasks, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
            )

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.close()


class Failures:
    """What the reward functions of an environment raised. verifiers logs that and scores 0, which nobody would see."""

    def __init__(self, rubric: Any) -> None:
        self.found: list[str] = []
        for functions, place in functions_of(rubric):
            functions[place] = self._recorded(functions[place])

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        name = getattr(function, "__name__", type(function).__name__)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            try:
                value = function(*args, **kwargs)
                return await value if asyncio.iscoroutine(value) or asyncio.isfuture(value) else value
            except Exception as error:
                self.found.append(f"the reward function {name} raised {told(error)}")
                raise

        call.__name__ = name
        return call


class Episode:
    """One rollout of a verifiers environment, of one row of its data. `failures` are those of its rubric."""

    def __init__(self, env: Any, row: Mapping[str, Any], loop: Loop, failures: Failures) -> None:
        self._env, self._row, self._loop, self._failures = env, row, loop, failures
        self._answer: asyncio.Future[Answer] | None = None
        self._desk: _Desk | None = None
        self._task: asyncio.Task[Any] | None = None

    def begin(self) -> Asked | Scored:
        """Raises Broken where verifiers or the environment fails; so does `answer`."""
        self._failures.found.clear()
        self._task = self._loop.start(self._play())
        return self._next()

    def answer(self, answer: Answer) -> Asked | Scored:
        assert self._answer is not None, "nothing is asked"
        self._answer.set_result(answer)
        self._answer = None
        return self._next()

    def close(self) -> None:
        """End a rollout that is not over, with its own clean-up, for which it has a few seconds."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            self._loop.first(self._task, deadline=time.monotonic() + _CLOSING_S)
        self._task = None

    async def _play(self) -> Any:
        self._desk = _Desk()  # here, in its loop
        client = _client_class()(self._desk)
        state = await self._env.rollout(dict(self._row), client, "rlpost", {})
        if state.get("error") is None:
            await self._env.rubric.score_rollout(state)
        with suppress(AttributeError):  # of older versions
            await self._env.rubric.cleanup(state)
        return state

    def _next(self) -> Asked | Scored:
        assert self._task is not None
        asked = self._loop.start(self._request())
        self._loop.first(self._task, asked)
        if asked.done() and not self._task.done():
            request, self._answer = asked.result()
            return request  # type: ignore[no-any-return]
        asked.cancel()
        self._loop.first(asked)
        return self._scored()

    async def _request(self) -> tuple[Asked, asyncio.Future[Answer]]:
        while self._desk is None:
            await asyncio.sleep(0)
        return await self._desk.asked.get()

    def _scored(self) -> Scored:
        assert self._task is not None
        try:
            state = self._task.result()
        except Exception as error:
            raise Broken(f"verifiers could not play the episode: {told(error)}") from error
        if (failure := state.get("error")) is not None:
            raise Broken(f"the environment failed: {told(failure)}") from failure
        if self._failures.found:
            raise Broken("; ".join(dict.fromkeys(self._failures.found)))
        parts = {name: float(value) for name, value in (state.get("metrics") or {}).items()}
        last = state.get("final_env_response") or []
        last = last if isinstance(last, list) else [{"role": "user", "content": str(last)}]
        return Scored(float(state["reward"]), parts, str(state.get("stop_condition") or ""), last)
