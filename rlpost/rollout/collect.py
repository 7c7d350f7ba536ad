"""Plays episodes: all live episodes decode together, and each goes on to its next turn once its answer is complete.

    specs ─▶ reset ─▶ prompt ─▶ engine.submit ─▶ engine.step ─▶ answer ─▶ env.step ─▶ feedback ─▶ engine.submit
               ▲                                                              │ episode over
               └──────────────── a free place, an idle environment ◀──────────┘

No more episodes are live than the engine decodes at once. `reset` and `step` run in threads (see env_threads.py) while
other episodes decode; all calls of one environment run in one thread. If an environment raises or misses its deadline,
its own episode ends, with a named ending, and the environment is not used again; the batch goes on.

Episodes are handed over as they end. A caller that wants no more closes the stream, which ends the live episodes.

An environment that asks (envs/asking.py) is a user's program: each time, it says which conversation to answer, and
receives the answer with its tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from rlpost.envs.asking import Asking, Heard, Refusal
from rlpost.rollout.agents.dialogue import Dialogue
from rlpost.rollout.agents.rendering import Renderer
from rlpost.rollout.chat import Chat
from rlpost.rollout.engine.protocol import Completion, Engine, Sampling
from rlpost.rollout.env_threads import SLICE_S, Call, EnvThread, EnvThreads
from rlpost.rollout.episode import Env, Episode, Opening, Reply, opened, replied
from rlpost.seeds import derive
from rlpost.types import Ending, EpisodeSpec, Trajectory

Ended = list[tuple[int, Trajectory]]
"""Episodes that have just ended, each with its index in the list of specs."""


@dataclass
class Batch:
    """The episodes of a batch by key, in any state. `decoding` holds the live ones that the engine has."""

    waiting: deque[tuple[str, EpisodeSpec]]
    sampling: Sampling
    policy_version: int
    live: dict[str, Episode] = field(default_factory=dict)
    decoding: set[str] = field(default_factory=set)
    ended: list[tuple[str, Episode]] = field(default_factory=list)  # not yet handed over
    engine_seconds: float = 0.0  # in steps of the engine, since the batch began


class Collector:
    """Plays episodes of one environment on one engine."""

    def __init__(
        self,
        engine: Engine,
        env_name: str,
        make_env: Callable[[], Env],
        chat: Chat,
        max_live: int,
        env_timeout_s: float,
        answer_marker: str | None = None,
    ) -> None:
        self._engine, self._chat, self._env_name = engine, chat, env_name
        self._answer_marker = answer_marker
        self._make_env, self._max_live = make_env, max_live
        self._env_timeout_s = env_timeout_s
        self._threads = EnvThreads(env_name, env_timeout_s)
        self._idle: list[tuple[Env, EnvThread]] = []

    @cached_property
    def _renderer(self) -> Renderer:
        """The renderer for programs that ask. It reads the chat template, which other environments need not have."""
        return Renderer(self._chat)

    def collect(
        self, specs: Sequence[EpisodeSpec], sampling: Sampling, policy_version: int
    ) -> list[Trajectory]:
        """Play all of `stream`; return the episodes in the order of `specs`."""
        places = (pair for ended in self.stream(specs, sampling, policy_version) for pair in ended)
        return [trajectory for _, trajectory in sorted(places, key=lambda pair: pair[0])]

    def stream(
        self, specs: Sequence[EpisodeSpec], sampling: Sampling, policy_version: int
    ) -> Generator[Ended]:
        """Play every spec to its end. After each engine step, yields the episodes that have ended, often none.

        `policy_version` is the version of the engine's adapter. Closed early, the stream ends the live episodes; it
        waits at most rollout.env_timeout_s for environment calls in progress, which are not interrupted before.

        Raises RolloutError if so many calls of the environment hang that it counts as broken.
        """
        batch = Batch(deque((str(i), spec) for i, spec in enumerate(specs)), sampling, policy_version)
        try:
            while batch.waiting or batch.live:
                self._advance(batch)
                yield [(int(key), trajectory) for key, trajectory in self._handed_over(batch)]
        except GeneratorExit:
            self._abandon(batch)
            raise

    def advance(self, batch: Batch) -> list[tuple[str, Trajectory]]:
        """Advance an open batch, to which specs may be added between calls; return what has ended, by key.

        Unlike `stream` it returns soon, even if all live episodes wait for their environments. Raises like `stream`.
        """
        heard = self._advance(batch, wait=False)
        if not heard and not batch.decoding:
            time.sleep(SLICE_S)
        return self._handed_over(batch)

    def drain(self, batch: Batch) -> None:
        """Decode until the engine has no request of the batch. No further turn is submitted meanwhile."""
        while batch.decoding:
            self._decode(batch)

    def _advance(self, batch: Batch, wait: bool = True) -> int:
        """Begin episodes in free places, process the environments' replies, and decode one step.

        Returns the number of replies. If the engine has nothing to decode, it waits for one, unless `wait` is False.
        """
        while self._has_room(batch):
            self._begin(batch, *batch.waiting.popleft())
        calls = self._threads.finished(decoding=bool(batch.decoding) or not wait)
        for call in calls:
            self._hear(batch, call)
            self._ask(batch, call.name)
        if batch.decoding and not self._has_room(batch):
            self._decode(batch)
        return len(calls)

    def _decode(self, batch: Batch) -> None:
        began = time.perf_counter()
        completions = self._engine.step()
        batch.engine_seconds += time.perf_counter() - began
        for key, completion in completions:
            self._answered(batch, key, completion)

    def _handed_over(self, batch: Batch) -> list[tuple[str, Trajectory]]:
        ended, batch.ended = batch.ended, []
        return [(key, episode.trajectory(self._env_name)) for key, episode in ended]

    def _abandon(self, batch: Batch) -> None:
        """End the live episodes, so that no part of them appears in the next batch."""
        self._engine.abort(sorted(batch.decoding))
        while calls := self._threads.finished(decoding=False):
            for call in calls:
                self._hear(batch, call)
        for episode in batch.live.values():
            if episode.dialogue is None or episode.env is None:
                self._rest(episode)
            else:  # its program would otherwise wait for an answer
                self._threads.retire(episode.thread, episode.env.close)

    def close(self) -> list[str]:
        """Close the environments, in their threads, within rollout.env_timeout_s each. Returns what went wrong."""
        idle, self._idle = self._idle, []
        return self._threads.close(idle)

    def _has_room(self, batch: Batch) -> bool:
        return bool(batch.waiting) and len(batch.live) < self._max_live

    def _begin(self, batch: Batch, key: str, spec: EpisodeSpec) -> None:
        env, thread = self._idle.pop() if self._idle else (None, EnvThread())
        batch.live[key] = Episode(spec, env, thread)
        self._threads.submit(Call(key, partial(opened, self._make_env, env, spec), thread))

    def _answered(self, batch: Batch, key: str, completion: Completion) -> None:
        batch.decoding.remove(key)
        episode = batch.live[key]
        episode.completion, episode.answer = completion, self._chat.text(completion.token_ids)
        assert episode.env is not None, "what has answered was opened"
        if episode.dialogue is None:
            work: Callable[[], Heard | Reply] = partial(replied, episode.env, episode.answer)
        else:
            answer = episode.dialogue.answered(completion, episode.answer)
            work = partial(_asking(episode.env).answered, answer)
        self._threads.submit(Call(key, work, episode.thread))

    def _hear(self, batch: Batch, call: Call) -> None:
        """Process an environment's reply, or its failure."""
        episode = batch.live[call.name]
        if call.timed_out or call.error is not None:
            self._failed(episode, call)
        elif isinstance(call.result, Opening):
            episode.env, episode.instance = call.result.env, call.result.instance
            episode.difficulty = call.result.difficulty
            if isinstance(call.result.env.unwrapped, Asking):
                episode.dialogue = Dialogue(self._renderer, self._chat.eos_id, self._engine.max_model_len)
                episode.next = _asking(call.result.env).start
                return
            messages, episode.tools = call.result.messages, call.result.tools
            episode.show(messages, self._chat.prompt_ids(messages, episode.tools))
        elif isinstance(call.result, Heard):
            self._heard(batch, episode, call.result)
        else:
            self._replied(episode, call.result)

    def _heard(self, batch: Batch, episode: Episode, heard: Heard) -> None:
        """Process what a program did after an answer or a refusal."""
        if episode.completion is not None:
            thought_tokens = self._thought_tokens(episode.completion)
            episode.record(0.0, heard.outcome, thought_tokens)
        if heard.request is None:
            episode.end(Ending(heard.over.value), heard)
            return
        assert episode.dialogue is not None, "who asks has a dialogue"
        assert episode.env is not None, "who asks was opened"
        placed = episode.dialogue.ask(heard.request, batch.sampling)
        if isinstance(placed, Refusal):
            episode.next = partial(_asking(episode.env).refused, placed)
        else:
            episode.show_request(placed)

    def _failed(self, episode: Episode, call: Call) -> None:
        self._threads.retire(episode.thread, None if episode.env is None else episode.env.close)
        episode.env = None
        episode.ending = Ending.ENV_TIMEOUT if call.timed_out else Ending.ENV_ERROR
        asked = "reset" if episode.completion is None else "step"
        episode.error = self._threads.told(
            call, asked if episode.dialogue is None else "the agent's next call or end"
        )
        if episode.completion is not None:
            thought_tokens = self._thought_tokens(episode.completion)
            episode.record(0.0, episode.ending.name, thought_tokens)

    def _replied(self, episode: Episode, reply: Reply) -> None:
        completion = episode.completion
        assert completion is not None, "a reply is to an answer"
        thoughts = self._thought_tokens(completion)
        episode.record(reply.reward, reply.outcome, thoughts, reply.parts)
        episode.success, episode.ending = reply.success, reply.ending
        episode.final_answer = reply.final_answer
        if reply.ending is None:
            ids = self._chat.feedback_ids(reply.messages, completion.finish, episode.tools)
            episode.show(reply.messages, ids)

    def _ask(self, batch: Batch, key: str) -> None:
        """Submit the episode's next turn, or retire the episode if it is over."""
        episode = batch.live[key]
        if episode.ending is None and len(episode.conversation) >= self._engine.max_model_len:
            episode.ending = Ending.CONTEXT_FULL
        if episode.ending is not None:
            batch.ended.append((key, batch.live.pop(key)))
            self._rest(episode)
            return
        if episode.next is not None:
            work, episode.next = episode.next, None
            self._threads.submit(Call(key, work, episode.thread))
            return
        dice = derive(episode.spec.seed, len(episode.turns))
        sampling = batch.sampling if episode.dialogue is None else episode.dialogue.sampling(batch.sampling)
        self._engine.submit(key, episode.conversation, sampling, dice)
        episode.policy_version = batch.policy_version
        batch.decoding.add(key)

    def _rest(self, episode: Episode) -> None:
        """Keep the environment of a finished episode for another one, unless the environment failed."""
        if episode.env is not None:
            self._idle.append((episode.env, episode.thread))

    def _thought_tokens(self, completion: Completion) -> int:
        marker = self._answer_marker
        return 0 if marker is None else self._chat.thought_tokens(completion.token_ids, marker)


def _asking(env: Env) -> Asking:
    asking = env.unwrapped
    assert isinstance(asking, Asking), "only what asks is asked so"
    return asking
