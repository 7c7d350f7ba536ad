"""Finds which of an episode's requests continue an earlier, answered one, and reuses its sampled tokens exactly.

    asked: u             new sample 0    prompt = u
    asked: u a v         a is sample 0's answer, as recorded ─▶ prompt = the ids of u, of a as sampled, of v: sample 0
    asked: s v           nothing recorded begins like this   ─▶ new sample 1, prompt = s v
    asked: u a w         begins like sample 0, which has gone on since ─▶ new sample 2, prompt = ids of u, a, w

A sample is one conversation for the learner. Sampled tokens are never decoded and encoded again: an answer in a history
is recognized by its text and replaced by its recorded ids.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlpost.envs import messages as said
from rlpost.envs.asking import Request
from rlpost.envs.messages import readable
from rlpost.rollout.agents.rendering import Message, Renderer
from rlpost.rollout.engine.protocol import Completion
from rlpost.types import Finish, Turn


@dataclass(frozen=True)
class _Answered:
    """A conversation up to and including an answer of the model."""

    messages: tuple[Message, ...]
    tools: tuple[Message, ...]
    token_ids: tuple[int, ...]
    finish: Finish
    sample: int


@dataclass(frozen=True)
class Placed:
    """A request in tokens. `context_ids` are the end of `prompt_ids`: the tokens that its sample does not have yet."""

    prompt_ids: tuple[int, ...]
    context_ids: tuple[int, ...]
    observation: str  # the messages in `context_ids`
    sample: int
    opens_sample: bool


class Recording:
    """The samples of one episode."""

    def __init__(self, renderer: Renderer, eos_id: int) -> None:
        self._renderer, self._eos_id = renderer, eos_id
        self._known: list[_Answered] = []
        self._samples: list[int] = []  # the sample of each answer, in order

    def place(self, request: Request) -> Placed:
        """Place a request: as the continuation of a sample, or as a new one. Raises ModelError."""
        begun = [known for known in self._known if _begins(request, known)]
        for known in sorted(begun, key=lambda each: (-len(each.messages), not self._newest(each))):
            placed = self._after(known, request)
            if placed is not None:
                return placed
        ids = self._renderer.prompt_ids(request.messages, request.tools)
        return Placed(ids, ids, _told(request.messages), self._next_sample(), True)

    def answered(self, request: Request, placed: Placed, completion: Completion, text: str) -> None:
        """Record the answer to a placed request."""
        messages = (*request.messages, {"role": "assistant", "content": text})
        ids = (*placed.prompt_ids, *completion.token_ids)
        self._known.append(_Answered(messages, request.tools, ids, completion.finish, placed.sample))
        self._samples.append(placed.sample)

    def ordered(self, turns: list[Turn]) -> list[Turn]:
        """An episode's turns, sample by sample; the sample of the last answer comes last, since it gets the reward."""
        last = {sample: i for i, sample in enumerate(self._samples)}
        order = sorted(range(len(turns)), key=lambda i: (last[self._samples[i]], i))
        return [turns[i] for i in order]

    def _after(self, known: _Answered, request: Request) -> Placed | None:
        tail = self._renderer.tail(request.messages, len(known.messages) - 1, request.tools)
        if tail is None:
            return None
        ended = known.finish is Finish.STOP and tail[:1] == (self._eos_id,)
        context = tail[1:] if ended else tail
        prompt = (*known.token_ids, *context)
        if self._newest(known):
            told = _told(request.messages[len(known.messages) :])
            return Placed(prompt, context, told, known.sample, False)
        return Placed(prompt, prompt, _told(request.messages), self._next_sample(), True)

    def _newest(self, known: _Answered) -> bool:
        """Whether its sample has not continued since."""
        return known is next(each for each in reversed(self._known) if each.sample == known.sample)

    def _next_sample(self) -> int:
        return 1 + max(self._samples, default=-1)


def _begins(request: Request, known: _Answered) -> bool:
    """Whether a request's conversation continues a known one."""
    length = len(known.messages)
    return (
        len(request.messages) > length
        and request.tools == known.tools
        and request.messages[:length] == known.messages
    )


def _told(messages: tuple[Message, ...]) -> str:
    return readable([said.Message.of(message["role"], message["content"]) for message in messages])
