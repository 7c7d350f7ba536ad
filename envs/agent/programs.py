"""Runs a user's agent for one episode: a function in its own thread, or a command in its own process."""

from __future__ import annotations

import asyncio
import copy
import ctypes
import inspect
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from rlpost.envs.agent.conversation import Conversation, End
from rlpost.envs.own import told

MOST_LEFT = (
    64  # abandoned functions that have not ended; with more, the agent counts as broken, not the episode
)
_JOIN_S = 0.2  # seconds for a function whose next call was refused
_TAIL = 400  # characters of a failed command's output


@dataclass(frozen=True)
class Access:
    """The address and the credentials with which an agent asks."""

    base_url: str
    api_key: str
    model: str


class Program(Protocol):
    """A running program. It reports its end to the conversation."""

    def stop(self) -> None:
        """End it, with everything that it started. Also called if it has ended by itself."""


class Function:
    """Runs `function` in a daemon thread. Python cannot end a thread: one that hangs in a call is abandoned."""

    _left: list[threading.Thread] = []  # noqa: RUF012  of the whole process

    def __init__(
        self,
        function: Callable[..., Any],
        conversation: Conversation,
        access: Access,
        task: Mapping[str, Any],
    ) -> None:
        Function._left = [thread for thread in Function._left if thread.is_alive()]
        if len(Function._left) > MOST_LEFT:
            raise RuntimeError(f"{len(Function._left)} agents hang; mend the agent: a thread cannot be ended")
        self._function, self._conversation = function, conversation
        self._access, self._task = access, copy.deepcopy(dict(task))
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with suppress(SystemExit):  # raised late by `stop`
            self._conversation.end(self._ended())

    def _ended(self) -> End:
        access = self._access
        try:
            returned = self._function(
                base_url=access.base_url, api_key=access.api_key, model=access.model, task=self._task
            )
            return End(asyncio.run(_awaited(returned)) if inspect.isawaitable(returned) else returned)
        except BaseException as error:  # an agent may raise anything, and may call sys.exit
            return End(error=told(error))

    def stop(self) -> None:
        """Raise SystemExit in the thread as soon as it executes Python."""
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            ident = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SystemExit))
            Function._left.append(self._thread)


async def _awaited(returned: Any) -> object:
    result: object = await returned
    return result


class Command:
    """Runs a program in its own session, with OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_MODEL and RLPOST_TASK.

    Raises OSError if it cannot be started.
    """

    def __init__(
        self, command: Sequence[str], conversation: Conversation, access: Access, task: Mapping[str, Any]
    ) -> None:
        self._conversation = conversation
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  read when the program has ended
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "OPENAI_BASE_URL": access.base_url,
                "OPENAI_API_KEY": access.api_key,
                "OPENAI_MODEL": access.model,
                "RLPOST_TASK": json.dumps(task, default=str),
            },
        )
        self._reaping = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="agent", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        # The process is not reaped yet, so no other process can have its number, which is also its group's.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        with self._reaping:
            self._kill_group()
            status = self._process.wait()
        self._conversation.end(End(error=self._failure(status) if status else None))
        self._said.close()

    def _failure(self, status: int) -> str:
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - 4 * _TAIL))
        tail = self._said.read().decode("utf-8", "replace").strip()[-_TAIL:]
        before, _, last = tail.rpartition("\n")  # of a traceback, the last line names the error
        told = f"the command ended with status {status}: {last.strip() or 'it said nothing'}"
        return f"{told}; before that: {before.strip()}" if before.strip() else told

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _kill_children(self) -> None:
        with suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    child.kill()

    def stop(self) -> None:
        """Kill the program, its group, and the children that left the group."""
        with self._reaping:
            if self._process.returncode is None:
                self._kill_children()
                self._kill_group()
        self._watcher.join(_JOIN_S)
