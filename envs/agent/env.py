"""One episode of a user's agent, as an environment that asks (envs/asking.py)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rlpost.envs.agent.conversation import Conversation, End
from rlpost.envs.agent.programs import Access, Command, Function, Program
from rlpost.envs.agent.requests import MODEL
from rlpost.envs.agent.rewards import earned
from rlpost.envs.agent.settings import Settings
from rlpost.envs.asking import CONTEXT_LENGTH_EXCEEDED, Answer, Heard, Over, Refusal, Request
from rlpost.envs.dataset.conversation import Asked
from rlpost.envs.dataset.rewards import Scorer
from rlpost.envs.dataset.table import load
from rlpost.envs.messages import Said
from rlpost.envs.one_turn import OneTurn, Question, Verdict
from rlpost.envs.splits import Split


class AgentFailed(Exception):
    """The agent raised, or ended in a way that an agent must not."""


@dataclass
class _Play:
    """A running program, and the state of its requests."""

    token: str
    conversation: Conversation
    program: Program
    answers: int = 0
    last_answer: str = ""
    gives_up: Over = Over.TERMINATED  # the episode's ending if the program fails from now on


class AgentEnv(OneTurn):
    """A task from a row, and the program that works on it. `reset` draws the task, `start` starts the program."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._table = settings, load(settings.tasks)
        self._scorer = Scorer(settings.tasks, self._table.fields) if settings.scored else None
        self._function = None if settings.agent is None else settings.function()
        self._play: _Play | None = None
        super().__init__(self._table.variants)

    def draw(self, variant: str, split: Split, rng: random.Random) -> Question:
        """A task. Raises Refused if the variant has none in the split."""
        return self._table.drawn(variant, split, rng)

    def instances(self, variant: str, split: str) -> int:
        """The number of different tasks among the rows."""
        return self._table.instances(variant, Split(split))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Said, dict[str, Any]]:
        self._stop()
        return super().reset(seed=seed, options=options)

    def start(self) -> Heard:
        """See rlpost.envs.asking.Asking. Raises AgentFailed, and OSError if the command cannot be run."""
        from rlpost.envs.agent.server import server

        self._stop()
        endpoint, conversation = server(self._settings.network), Conversation()
        token = endpoint.open(conversation)
        try:
            program = self._program(conversation, Access(endpoint.base_url, token, MODEL))
        except BaseException:
            endpoint.close(token)
            raise
        self._play = _Play(token, conversation, program)
        return self._hear(self._play)

    def answered(self, answer: Answer) -> Heard:
        """See rlpost.envs.asking.Asking. Raises AgentFailed, and what a scoring function raises."""
        play = self._present()
        play.answers, play.last_answer = play.answers + 1, answer.text
        play.conversation.reply(answer)
        return self._hear(play)

    def refused(self, refusal: Refusal) -> Heard:
        """See rlpost.envs.asking.Asking. Raises like `answered`."""
        play = self._present()
        if refusal.code == CONTEXT_LENGTH_EXCEEDED:
            play.gives_up = Over.CONTEXT_FULL
        play.conversation.reply(refusal)
        return self._hear(play)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Score a single answer, for a person who plays the model's part by hand."""
        if self._play is None:
            heard = self.start()
            if heard.request is None:
                return _as_step(heard)
        return _as_step(self.answered(Answer(action)))

    def grade(self, question: Question, answer: str) -> Verdict:
        """The verdict on the program's end with this last answer, if a scoring function gives it."""
        return earned(self._settings, self._scoring(question), None, None, answer)

    def close(self) -> None:
        self._stop()
        if self._scorer is not None:
            self._scorer.close()
        super().close()

    def _program(self, conversation: Conversation, access: Access) -> Program:
        row = self.question.data
        if self._function is not None:
            return Function(self._function, conversation, access, row)
        return Command(self._settings.command, conversation, access, row)

    def _present(self) -> _Play:
        if self._play is None:
            raise AgentFailed("no agent runs: call start first")
        return self._play

    def _hear(self, play: _Play) -> Heard:
        """The next request, or the end of the episode; no part of the program is left then."""
        try:
            heard = play.conversation.hear()
            while isinstance(heard, Request) and play.answers >= self._settings.max_calls:
                play.gives_up = Over.TRUNCATED
                play.conversation.reply(
                    Refusal(
                        f"env_args.max_calls={self._settings.max_calls} are used up", None, "calls_used_up"
                    )
                )
                heard = play.conversation.hear()
            if isinstance(heard, Request):
                return Heard(heard)
            self._stop()
            return self._ended(play, heard)
        except BaseException:  # includes the end of an abandoned thread
            self._stop()
            raise

    def _ended(self, play: _Play, end: End) -> Heard:
        if play.gives_up is Over.TERMINATED and end.error is not None:
            raise AgentFailed(end.error)
        if play.gives_up is Over.TERMINATED and not play.answers:
            raise AgentFailed("the agent ended without a call of the model")
        if end.error is not None:
            return Heard(None, play.gives_up, 0.0, play.gives_up.name)
        scoring, posted = self._scoring(self.question), play.conversation.posted
        verdict = earned(self._settings, scoring, end.returned, posted, play.last_answer)
        return Heard(None, Over.TERMINATED, verdict.reward, verdict.outcome, verdict.success, verdict.parts)

    def _scoring(self, question: Question) -> Callable[[str], Verdict] | None:
        """The scoring function of a task; None if the program itself determines the reward."""
        assert isinstance(question, Asked), "questions are drawn here"
        return None if self._scorer is None else partial(self._scorer, question=question)

    def _stop(self) -> None:
        play, self._play = self._play, None
        if play is None:
            return
        from rlpost.envs.agent.server import server

        server(self._settings.network).close(play.token)
        play.conversation.close()
        play.program.stop()


def _as_step(heard: Heard) -> tuple[str, float, bool, bool, dict[str, Any]]:
    said = "" if heard.request is None else heard.request.messages[-1]["content"]
    over = heard.request is None
    truncated = over and heard.over is not Over.TERMINATED
    info = {"outcome": heard.outcome, "success": heard.success}
    return said, heard.reward, over and not truncated, truncated, info
