"""One live episode: its conversation so far, and the next request to its environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium

from rlpost.envs import adapter
from rlpost.envs.asking import Heard
from rlpost.envs.base import outcome_name
from rlpost.envs.messages import Message, Said, messages_of, readable
from rlpost.rollout.agents.dialogue import Dialogue
from rlpost.rollout.agents.recording import Placed
from rlpost.rollout.engine.protocol import Completion
from rlpost.rollout.env_threads import EnvThread
from rlpost.types import Ending, EpisodeSpec, ModelInput, Trajectory, Turn

Env = gymnasium.Env[Any, str]


@dataclass(frozen=True)
class Opening:
    """The environment's first messages."""

    env: Env
    messages: tuple[Message, ...]
    instance: str
    difficulty: str | None
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Reply:
    """The environment's reply to an answer. `ending` is None while the episode goes on."""

    messages: tuple[Message, ...]
    reward: float
    ending: Ending | None
    outcome: str
    success: bool
    final_answer: str | None  # the answer in canonical form, if the environment gives one
    parts: tuple[tuple[str, float], ...] = ()


def opened(make_env: Callable[[], Env], env: Env | None, spec: EpisodeSpec) -> Opening:
    """Reset `env`, or a new environment if it is None; return the opening.

    Raises whatever the environment raises, Refused and TypeError for a wrong return value (see envs/adapter.py), and
    ValueError for text that UTF-8 cannot encode.
    """
    if env is not None:
        return _reset(env, spec)
    env = make_env()
    try:
        return _reset(env, spec)
    except BaseException:
        with suppress(Exception):  # no other code holds this environment
            env.close()
        raise


def _reset(env: Env, spec: EpisodeSpec) -> Opening:
    observation, info = adapter.opened(env.reset(seed=spec.env_seed, options=spec.reset_options))
    instance = adapter.in_utf8(str(adapter.field(info, "instance", "reset")))
    told = adapter.word(info, "difficulty")
    return Opening(env, _messages(observation), instance, told, adapter.tools_of(env))


def replied(env: Env, answer: str) -> Reply:
    """Take one step. Raises like `opened`, and ValueError for a reward that no update takes: not finite, or huge."""
    feedback, reward, terminated, truncated, info = adapter.stepped(env.step(answer))
    ending = Ending.TERMINATED if terminated else Ending.TRUNCATED if truncated else None
    outcome = outcome_name(adapter.in_utf8(str(adapter.field(info, "outcome", "step"))))
    success = bool(adapter.field(info, "success", "step"))
    final, parts = adapter.word(info, "answer"), adapter.parts(info.get("parts", {}))
    return Reply(_messages(feedback), adapter.reward(float(reward)), ending, outcome, success, final, parts)


def _messages(said: Said) -> tuple[Message, ...]:
    messages = messages_of(said)
    for message in messages:
        adapter.in_utf8(message.text)
    return messages


@dataclass
class Episode:
    """`answer` and `completion` are the model's last answer until the environment has replied to it."""

    spec: EpisodeSpec
    env: Env | None  # None until the environment has opened, and after it failed
    thread: EnvThread  # the environment's own thread
    instance: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()  # the tools that its prompt declares
    observation: str = ""  # readable text of the messages since the last answer
    context_ids: tuple[int, ...] = ()  # tokens appended since the last answer
    conversation: ModelInput = field(default=ModelInput(()))  # all tokens, with the present context
    turns: list[Turn] = field(default_factory=list)
    success: bool = False
    difficulty: str | None = None
    final_answer: str | None = None
    ending: Ending | None = None
    error: str | None = None
    completion: Completion | None = None
    answer: str = ""
    dialogue: Dialogue | None = None  # for an environment that asks
    next: Callable[[], Heard] | None = None  # must be called in its thread before anything is sampled
    opens_sample: bool = False  # whether the present context is a whole prompt that begins a sample
    # Version that was live when the present turn was submitted: the oldest one that can have sampled any of its tokens.
    policy_version: int = 0

    def show(self, messages: tuple[Message, ...], context_ids: tuple[int, ...]) -> None:
        self.observation, self.context_ids = readable(messages), context_ids
        self.conversation = self.conversation.followed_by(context_ids)

    def show_request(self, placed: Placed) -> None:
        """Set the context to a whole conversation, which may differ from the last one."""
        self.observation, self.context_ids = placed.observation, placed.context_ids
        self.conversation, self.opens_sample = ModelInput(placed.prompt_ids), placed.opens_sample

    def record(
        self,
        reward: float,
        outcome: str,
        thought_tokens: int,
        parts: tuple[tuple[str, float], ...] = (),
    ) -> None:
        """Turn the last answer into a turn."""
        completion, self.completion = self.completion, None
        assert completion is not None, "a turn has an answer"
        self.conversation = self.conversation.followed_by(completion.token_ids)
        self.turns.append(
            Turn(
                context_ids=self.context_ids,
                answer_ids=completion.token_ids,
                logprobs=completion.logprobs,
                observation=self.observation,
                answer=self.answer,
                finish=completion.finish,
                reward=reward,
                outcome=outcome,
                policy_version=self.policy_version,
                thought_tokens=thought_tokens,
                parts=parts,
                opens_sample=self.opens_sample,
            )
        )

    def end(self, ending: Ending, heard: Heard) -> None:
        """End the episode of a program that asks. Its last turn earns the reward."""
        self.ending, self.success = ending, heard.success
        if self.turns:
            last, parts = self.turns[-1], adapter.parts(heard.parts)
            self.turns[-1] = replace(last, reward=heard.reward, outcome=heard.outcome, parts=parts)

    def trajectory(self, env_name: str) -> Trajectory:
        assert self.ending is not None, "only an episode that is over is a trajectory"
        spec = self.spec
        turns = self.turns if self.dialogue is None else self.dialogue.ordered(self.turns)
        return Trajectory(
            env=env_name,
            variant=spec.variant,
            split=spec.split,
            instance=self.instance,
            iteration=spec.iteration,
            episode=spec.episode,
            group=spec.group,
            seed=spec.seed,
            turns=tuple(turns),
            ending=self.ending,
            success=self.success,
            error=self.error,
            difficulty=self.difficulty,
            final_answer=self.final_answer,
        )
