"""Run episodes: all live ones decode together, each going on to its next turn as soon as its answer is there.

    specs ─▶ idle environments ─▶ reset ─▶ prompt ─▶ engine.submit ─┐
                  ▲                                                ▼
                  │ episode over                              engine.step ─▶ answer ─▶ env.step ─▶ feedback ─▶ submit
                  └──────────────────────────────────────────────────────────────────┘

No more episodes are live than the engine decodes at once. An environment that raises ends its own episode with
a named ending; the batch goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import gymnasium

from rlpost.rollout.chat import Chat
from rlpost.rollout.engine import Completion, Engine, Sampling
from rlpost.seeds import derive
from rlpost.types import Ending, EpisodeSpec, Trajectory, Turn

ENV_ERROR = "ENV_ERROR"  # outcome of the turn in which an environment raised
Env = gymnasium.Env[str, str]


@dataclass
class _Episode:
    """A live episode: what was said so far and what the model is answering now."""

    spec: EpisodeSpec
    env: Env
    instance: str = ""
    observation: str = ""
    context_ids: tuple[int, ...] = ()  # appended since the last answer
    token_ids: tuple[int, ...] = ()  # the whole conversation, the present context included
    turns: list[Turn] = field(default_factory=list)
    success: bool = False
    ending: Ending | None = None
    error: str | None = None

    def show(self, observation: str, context_ids: tuple[int, ...]) -> None:
        self.observation, self.context_ids = observation, context_ids
        self.token_ids = (*self.token_ids, *context_ids)


class Collector:
    """Plays episodes of one environment with one engine."""

    def __init__(
        self,
        engine: Engine,
        env_name: str,
        make_env: Callable[[], Env],
        chat: Chat,
        max_live: int,
        answer_marker: str | None = None,
    ) -> None:
        self._engine, self._chat, self._env_name = engine, chat, env_name
        self._answer_marker = answer_marker
        self._make_env, self._max_live = make_env, max_live
        self._idle: list[Env] = []

    def collect(
        self, specs: Sequence[EpisodeSpec], sampling: Sampling, adapter_version: int
    ) -> list[Trajectory]:
        """Play every spec to its end; trajectories in the order of `specs`, none missing."""
        waiting = deque(enumerate(specs))
        live: dict[str, _Episode] = {}
        done: dict[str, _Episode] = {}
        while waiting or live:
            while waiting and len(live) < self._max_live:
                index, spec = waiting.popleft()
                live[str(index)] = self._begin(spec)
                self._ask(str(index), live, done, sampling)
            for key, completion in self._engine.step() if live else []:
                self._answered(live[key], completion)
                self._ask(key, live, done, sampling)
        return [self._trajectory(done[str(index)], adapter_version) for index in range(len(specs))]

    def _begin(self, spec: EpisodeSpec) -> _Episode:
        episode = _Episode(spec, self._idle.pop() if self._idle else self._make_env())
        try:
            options = {"variant": spec.variant, "split": spec.split}
            observation, info = episode.env.reset(seed=spec.env_seed, options=options)
            episode.instance = str(info["instance"])
        except Exception as error:  # an environment may raise anything; it is recorded in the trajectory
            _fail(episode, error)
        else:
            episode.show(observation, self._chat.prompt_ids(observation))
        return episode

    def _ask(
        self, key: str, live: dict[str, _Episode], done: dict[str, _Episode], sampling: Sampling
    ) -> None:
        """Submit the episode's next turn, or retire it when it is over."""
        episode = live[key]
        room = self._engine.max_model_len - len(episode.token_ids)
        if episode.ending is None and room < 1:
            episode.ending = Ending.CONTEXT_FULL
        if episode.ending is not None:
            done[key] = live.pop(key)
            if episode.error is None:
                self._idle.append(episode.env)
            return
        dice = derive(episode.spec.seed, len(episode.turns))
        fitting = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        self._engine.submit(key, episode.token_ids, fitting, dice)

    def _answered(self, episode: _Episode, completion: Completion) -> None:
        answer = self._chat.text(completion.token_ids)
        try:
            feedback, reward, terminated, truncated, info = episode.env.step(answer)
            outcome, success, reward = str(info["outcome"]), bool(info["success"]), float(reward)
        except Exception as error:  # as above
            _fail(episode, error)
            self._record(episode, completion, answer, 0.0, ENV_ERROR)
            return
        self._record(episode, completion, answer, reward, outcome)
        episode.success = success
        if terminated or truncated:
            episode.ending = Ending.TERMINATED if terminated else Ending.TRUNCATED
        else:
            episode.show(feedback, self._chat.feedback_ids(feedback, completion.finish))

    def _record(
        self, episode: _Episode, completion: Completion, answer: str, reward: float, outcome: str
    ) -> None:
        episode.token_ids = (*episode.token_ids, *completion.token_ids)
        episode.turns.append(
            Turn(
                context_ids=episode.context_ids,
                answer_ids=completion.token_ids,
                logprobs=completion.logprobs,
                observation=episode.observation,
                answer=answer,
                finish=completion.finish,
                reward=reward,
                outcome=outcome,
                thought_tokens=self._thought_tokens(completion),
            )
        )

    def _thought_tokens(self, completion: Completion) -> int:
        marker = self._answer_marker
        return 0 if marker is None else self._chat.thought_tokens(completion.token_ids, marker)

    def _trajectory(self, episode: _Episode, adapter_version: int) -> Trajectory:
        assert episode.ending is not None
        spec = episode.spec
        return Trajectory(
            env=self._env_name,
            variant=spec.variant,
            split=spec.split,
            instance=episode.instance,
            iteration=spec.iteration,
            episode=spec.episode,
            group=spec.group,
            seed=spec.seed,
            adapter_version=adapter_version,
            turns=tuple(episode.turns),
            ending=episode.ending,
            success=episode.success,
            error=episode.error,
        )


def _fail(episode: _Episode, error: Exception) -> None:
    episode.ending, episode.error = Ending.ENV_ERROR, f"{type(error).__name__}: {error}"
