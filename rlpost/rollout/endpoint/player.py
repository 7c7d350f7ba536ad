"""Plays episodes with a model behind an endpoint, in the environment threads and with the deadlines of a rollout.

    specs ─▶ reset ─▶ messages ─▶ client.ask ─▶ answer ─▶ env.step ─▶ feedback ─▶ client.ask with all messages

A conversation is a list of messages: nobody here knows the model's tokens. So turns have no token ids and no log-probs,
`Trajectory.player` names the model, and the learner refuses such episodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial

from rlpost.config.schema import Config
from rlpost.envs import registry
from rlpost.envs.messages import Message
from rlpost.errors import RolloutError
from rlpost.rollout.endpoint.client import Answer, ChatMessage, ContextFull, EndpointClient
from rlpost.rollout.endpoint.fit import unplayable
from rlpost.rollout.engine.protocol import Completion, Sampling
from rlpost.rollout.env_threads import SLICE_S, Call, EnvThread, EnvThreads
from rlpost.rollout.episode import Env, Episode, Opening, opened, replied
from rlpost.seeds import derive
from rlpost.types import Ending, EpisodeSpec, Trajectory

_PLAYABLE = "play it with a model of this machine (without eval.endpoint)"


@dataclass
class _Live:
    """A live episode and its conversation so far."""

    episode: Episode
    messages: list[ChatMessage] = field(default_factory=list)
    reported: list[int | None] = field(default_factory=list)  # by turn, the tokens that the server counted


@dataclass
class _Batch:
    waiting: deque[tuple[str, EpisodeSpec]]
    sampling: Sampling
    live: dict[str, _Live] = field(default_factory=dict)
    asked: dict[Future[Answer], str] = field(default_factory=dict)
    ended: dict[int, Trajectory] = field(default_factory=dict)


class EndpointPlayer:
    """Plays the configuration's environment; at most rollout.max_num_seqs episodes are live at once."""

    def __init__(self, cfg: Config, client: EndpointClient) -> None:
        self._cfg, self._client = cfg, client
        self._threads = EnvThreads(cfg.env, cfg.rollout.env_timeout_s)
        self._idle: list[tuple[Env, EnvThread]] = []

    def collect(self, specs: Sequence[EpisodeSpec], sampling: Sampling) -> list[Trajectory]:
        """Play every spec to its end; return the episodes in the order of `specs`.

        Raises RolloutError for the first request that the server refuses or does not answer in time (a conversation
        that is too long only ends its episode), and for an environment that an endpoint cannot play.
        """
        batch = _Batch(deque((str(i), spec) for i, spec in enumerate(specs)), sampling)
        while batch.waiting or batch.live:
            while batch.waiting and len(batch.live) < self._cfg.rollout.max_num_seqs:
                self._begin(batch, *batch.waiting.popleft())
            for call in self._threads.finished(decoding=bool(batch.asked)):
                self._hear(batch.live[call.name], call)
                self._go_on(batch, call.name)
            for future in _done(batch.asked):
                self._answered(batch, batch.asked.pop(future), future)
        return [batch.ended[i] for i in range(len(specs))]

    def close(self) -> list[str]:
        """Close the environments, in their threads, within rollout.env_timeout_s each. Returns what went wrong."""
        idle, self._idle = self._idle, []
        return self._threads.close(idle)

    def _begin(self, batch: _Batch, key: str, spec: EpisodeSpec) -> None:
        env, thread = self._idle.pop() if self._idle else (None, EnvThread())
        batch.live[key] = _Live(Episode(spec, env, thread))
        make = partial(registry.make, self._cfg.env, **self._cfg.env_args)
        self._threads.submit(Call(key, partial(opened, make, env, spec), thread))

    def _hear(self, live: _Live, call: Call) -> None:
        """Process an environment's reply, or its failure."""
        episode = live.episode
        if call.timed_out or call.error is not None:
            self._failed(episode, call)
        elif isinstance(call.result, Opening):
            opening = call.result
            episode.env, episode.instance = opening.env, opening.instance
            episode.difficulty = opening.difficulty
            if reason := unplayable(opening.env, bool(opening.tools)):
                raise _cannot_play(self._cfg.env, reason)
            live.messages += _opening(self._cfg, opening.messages)
            episode.show(opening.messages, ())
        else:
            reply = call.result
            episode.record(reply.reward, reply.outcome, 0, reply.parts)
            episode.success, episode.ending = reply.success, reply.ending
            episode.final_answer = reply.final_answer
            if reply.ending is None:
                live.messages += _sent(self._cfg.env, reply.messages)
                episode.show(reply.messages, ())

    def _failed(self, episode: Episode, call: Call) -> None:
        self._threads.retire(episode.thread, None if episode.env is None else episode.env.close)
        episode.env = None
        episode.ending = Ending.ENV_TIMEOUT if call.timed_out else Ending.ENV_ERROR
        episode.error = self._threads.told(call, "reset" if episode.completion is None else "step")
        if episode.completion is not None:
            episode.record(0.0, episode.ending.name, 0)

    def _go_on(self, batch: _Batch, key: str) -> None:
        """Ask for the episode's next answer, or retire the episode if it is over."""
        live = batch.live[key]
        episode = live.episode
        if episode.ending is None:
            dice = derive(episode.spec.seed, len(episode.turns))
            batch.asked[self._client.ask(live.messages, batch.sampling, dice)] = key
            return
        del batch.live[key]
        batch.ended[int(key)] = self._trajectory(live)
        if episode.env is not None:
            self._idle.append((episode.env, episode.thread))

    def _answered(self, batch: _Batch, key: str, future: Future[Answer]) -> None:
        live = batch.live[key]
        episode = live.episode
        try:
            answer = future.result()
        except ContextFull:
            episode.ending = Ending.CONTEXT_FULL
            self._go_on(batch, key)
            return
        live.messages.append({"role": "assistant", "content": answer.text})
        live.reported.append(answer.tokens)
        episode.completion, episode.answer = Completion((), (), answer.finish), answer.text
        assert episode.env is not None, "what has answered was opened"
        self._threads.submit(Call(key, partial(replied, episode.env, answer.text), episode.thread))

    def _trajectory(self, live: _Live) -> Trajectory:
        played = live.episode.trajectory(self._cfg.env)
        turns = [
            replace(turn, reported_tokens=tokens)
            for turn, tokens in zip(played.turns, live.reported, strict=True)
        ]
        return replace(played, turns=tuple(turns), player=self._cfg.eval.endpoint_model)


def _done(asked: Iterable[Future[Answer]]) -> set[Future[Answer]]:
    """The requests that are over; waits a moment for one. Each ends by its own deadline."""
    pending = list(asked)
    return wait(pending, SLICE_S, FIRST_COMPLETED).done if pending else set()


def _opening(cfg: Config, messages: Sequence[Message]) -> list[ChatMessage]:
    """The first messages, with rollout.system_prompt in front. Raises RolloutError for a second system message."""
    prompt = cfg.rollout.system_prompt
    if prompt is None:
        return _sent(cfg.env, messages)
    if any(message.role == "system" for message in messages):
        raise RolloutError(
            "rollout.system_prompt\n  reason: the environment says a system message of its own\n  remedy: leave it out"
        )
    return [{"role": "system", "content": prompt}, *_sent(cfg.env, messages)]


def _sent(env_name: str, messages: Sequence[Message]) -> list[ChatMessage]:
    """Messages as the protocol has them. Raises RolloutError for a tool's, which must belong to a call with an id."""
    if any(message.role == "tool" for message in messages):
        raise _cannot_play(
            env_name, "it says a message of the role tool, which must answer a call with an id"
        )
    return [{"role": message.role, "content": message.text} for message in messages]


def _cannot_play(env_name: str, reason: str) -> RolloutError:
    return RolloutError(
        f"env={env_name} cannot be played by eval.endpoint\n  reason: {reason}\n  remedy: {_PLAYABLE}"
    )
