"""One conversation with an engine, token by token as in a rollout: history is only ever appended to."""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.envs.messages import Said
from rlpost.rollout.chat import Chat
from rlpost.rollout.chat_template import Tools
from rlpost.rollout.engine.protocol import Engine, Sampling
from rlpost.seeds import derive
from rlpost.types import Finish, ModelInput


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    finish: Finish


class ContextFull(Exception):
    """The message leaves no room for an answer. The conversation is unchanged."""


class Conversation:
    """The conversation of a user, or an environment, with the model. `seed` decides each turn's random draws."""

    def __init__(self, engine: Engine, chat: Chat, sampling: Sampling, seed: int) -> None:
        self._engine, self._chat, self._sampling, self._seed = engine, chat, sampling, seed
        self._finish: Finish | None = None  # how the last answer ended
        self.token_ids: tuple[int, ...] = ()
        self.turns = 0

    def say(self, said: Said, tools: Tools = ()) -> Answer:
        """Append a message and the model's answer. `tools` are those in the prompt. Raises ContextFull."""
        if self._finish is None:
            context = self._chat.prompt_ids(said, tools)
        else:
            context = self._chat.feedback_ids(said, self._finish, tools)
        prompt_ids = (*self.token_ids, *context)
        if len(prompt_ids) >= self._engine.max_model_len:
            raise ContextFull(
                f"the context is full: {len(prompt_ids)} tokens with this message, and"
                f" rollout.max_model_len={self._engine.max_model_len} with an answer"
            )
        key = str(self.turns)
        self._engine.submit(key, ModelInput(prompt_ids), self._sampling, derive(self._seed, self.turns))
        finished = dict(self._engine.step())
        while key not in finished:  # it ends: an answer has at most rollout.max_new_tokens
            finished = dict(self._engine.step())
        completion = finished[key]
        self.token_ids = (*prompt_ids, *completion.token_ids)
        self._finish = completion.finish
        self.turns += 1
        return Answer(self._chat.text(completion.token_ids), len(completion.token_ids), completion.finish)
