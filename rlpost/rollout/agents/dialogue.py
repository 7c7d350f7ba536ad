"""One live episode of a program that asks: its present request, in tokens or refused, and the answers given."""

from __future__ import annotations

from dataclasses import replace

from rlpost.envs.asking import CONTEXT_LENGTH_EXCEEDED, Answer, Refusal, Request
from rlpost.errors import ModelError
from rlpost.rollout.agents.recording import Placed, Recording
from rlpost.rollout.agents.rendering import Renderer
from rlpost.rollout.engine.protocol import Completion, Sampling
from rlpost.types import Finish, Turn


class Dialogue:
    """The requests of an episode, one after another. Concurrent requests are answered in order of arrival."""

    def __init__(self, renderer: Renderer, eos_id: int, max_model_len: int) -> None:
        self._renderer, self._max_model_len = renderer, max_model_len
        self._recording = Recording(renderer, eos_id)
        self._present: tuple[Request, Placed] | None = None

    def ask(self, request: Request, sampling: Sampling) -> Placed | Refusal:
        """The request in tokens, or the reason why it is refused under the run's sampling."""
        if refusal := _other_sampling(request, sampling):
            return refusal
        try:
            placed = self._recording.place(request)
        # The template is the model's and the messages are the program's, so an error must not end the run.
        except Exception as error:
            reason = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
            return Refusal(
                f"the conversation has no tokens: {reason}", "tools" if request.tools else "messages"
            )
        if len(placed.prompt_ids) >= self._max_model_len:
            return Refusal(
                f"the conversation has {len(placed.prompt_ids)} tokens; rollout.max_model_len ="
                f" {self._max_model_len} must have room for an answer as well",
                "messages",
                CONTEXT_LENGTH_EXCEEDED,
            )
        self._present = request, placed
        return placed

    def sampling(self, sampling: Sampling) -> Sampling:
        """The run's sampling, with the request's own token limit if it has one."""
        assert self._present is not None, "a request is sampled for"
        most = self._present[0].max_tokens
        return sampling if most is None else replace(sampling, max_new_tokens=most)

    def answered(self, completion: Completion, text: str) -> Answer:
        """Record the answer to the present request; return what the program receives."""
        assert self._present is not None, "an answer is to a request"
        request, placed = self._present
        self._recording.answered(request, placed, completion, text)
        return Answer(
            text=text,
            prompt_ids=placed.prompt_ids,
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            tokens=self._renderer.token_texts(completion.token_ids),
            stopped=completion.finish is not Finish.LENGTH,
        )

    def ordered(self, turns: list[Turn]) -> list[Turn]:
        """See Recording.ordered."""
        return self._recording.ordered(turns)


def _other_sampling(request: Request, sampling: Sampling) -> Refusal | None:
    if request.temperature not in (None, sampling.temperature):
        return Refusal(
            f"temperature: the run samples at {sampling.temperature:g}; leave it out",
            "temperature",
            "unsupported_value",
        )
    if request.max_tokens is not None and request.max_tokens > sampling.max_new_tokens:
        return Refusal(
            f"max_tokens: rollout.max_new_tokens is {sampling.max_new_tokens}; give no more, or leave it out",
            "max_tokens",
            "unsupported_value",
        )
    if request.stop is not None and set(request.stop) != set(sampling.stop):
        return Refusal(
            f"stop: rollout.stop is {list(sampling.stop)}; leave it out", "stop", "unsupported_value"
        )
    return None
