"""The records that flow between rollouts, credit assignment and the learner.

Worked example: one episode of two turns. `u` are tokens the environment wrote (prompt, feedback, chat
markup), `a` are tokens the model sampled (its end-of-turn token included).

    turn 0: context_ids = u u u      answer_ids = a a       reward -1.0
    turn 1: context_ids = u u        answer_ids = a a a     reward  5.0

    Trajectory.token_ids  u u u a a u u a a a
    Trajectory.loss_mask  0 0 0 1 1 0 0 1 1 1     1 where the model chose the token
    Turn.logprobs               l l     l l l     sampling log-probs, of the sampled tokens only
    Turn.reward                   r         R     earned by the turn's last sampled token
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import chain, pairwise


class Finish(str, Enum):
    """The reason why a model's answer ended."""

    STOP = "stop"  # the model ended its turn
    STOP_STRING = "stop_string"  # it wrote one of rollout.stop, and no end of turn
    LENGTH = "length"  # it reached max_new_tokens, or the context was full


class Ending(str, Enum):
    """The reason why an episode ended."""

    TERMINATED = "terminated"  # the environment reached a final state
    TRUNCATED = "truncated"  # the environment ran out of attempts
    CONTEXT_FULL = "context_full"  # the next turn would not fit the model's context
    ENV_ERROR = "env_error"  # the environment raised; see Trajectory.error
    ENV_TIMEOUT = "env_timeout"  # the environment did not answer within rollout.env_timeout_s

    @property
    def broken(self) -> bool:
        """Whether the environment failed, so that the episode says nothing about the policy."""
        return self in (Ending.ENV_ERROR, Ending.ENV_TIMEOUT)


@dataclass(frozen=True)
class ModelInput:
    """The input that an engine continues."""

    token_ids: tuple[int, ...]

    def __len__(self) -> int:
        """The number of tokens that it takes in the model's context."""
        return len(self.token_ids)

    def followed_by(self, token_ids: tuple[int, ...]) -> ModelInput:
        return ModelInput((*self.token_ids, *token_ids))


@dataclass(frozen=True)
class Turn:
    """One observation and the model's answer to it."""

    context_ids: tuple[int, ...]  # environment tokens appended before the answer (turn 0: the whole prompt)
    answer_ids: tuple[int, ...]  # tokens as sampled, with the end-of-turn token if the model wrote it
    logprobs: tuple[float, ...]  # log pi(token) under the sampling distribution, one per answer id
    # The environment's text: one user message as it is; other roles, or several messages, each below "[role]".
    observation: str
    answer: str  # answer_ids as text, without special tokens but with the stop string that ended it
    finish: Finish
    reward: float  # the reward that the learner uses
    outcome: str  # the environment's name for what happened, e.g. CORRECT
    policy_version: int  # version of the adapter that sampled answer_ids; 0 is the bare base model
    thought_tokens: int = 0  # number of answer_ids before rollout.answer_marker; 0 without a marker
    env_reward: float | None = (
        None  # the environment's reward, if algo.reward_function or reward_control replaced it; else None
    )
    # (name, value) of each part of the environment's reward, if it has several
    parts: tuple[tuple[str, float], ...] = ()
    opens_sample: bool = False  # agents: context_ids are a whole prompt, not appended to the previous turn
    reported_tokens: int | None = (
        None  # of an endpoint's answer: the number of tokens that its server reported
    )


def token_ids(turns: Iterable[Turn]) -> list[int]:
    """All tokens of the turns, in order."""
    return list(chain.from_iterable((*t.context_ids, *t.answer_ids) for t in turns))


def loss_mask(turns: Iterable[Turn]) -> list[int]:
    """1 for each token of the turns that the model chose, else 0."""
    return list(chain.from_iterable([0] * len(t.context_ids) + [1] * len(t.answer_ids) for t in turns))


@dataclass(frozen=True)
class Trajectory:
    """One whole episode. `seed` identifies it: the same seed gives the same deal and the same random draws."""

    env: str
    variant: str
    split: str  # the set that its instance was drawn from: train, eval or all
    instance: str  # the environment's canonical name of the instance
    iteration: int
    episode: int  # index within the iteration's batch
    group: int  # episodes of one group share the instance
    seed: int
    turns: tuple[Turn, ...]
    ending: Ending
    success: bool
    error: str | None = None  # the environment's error, if ending.broken
    difficulty: str | None = None  # difficulty of the instance, if the environment gives it at reset
    final_answer: str | None = None  # the last answer in the environment's canonical form, if it gives one
    # The model behind eval.endpoint that played. Its tokens are unknown: turns have neither ids nor log-probs.
    player: str | None = None

    @property
    def token_ids(self) -> list[int]:
        return token_ids(self.turns)

    @property
    def loss_mask(self) -> list[int]:
        return loss_mask(self.turns)

    @property
    def samples(self) -> list[tuple[Turn, ...]]:
        """The turns by conversation, one row each for the learner: one, unless an agent rewrites its history."""
        begins = [i for i, turn in enumerate(self.turns) if i == 0 or turn.opens_sample]
        return [self.turns[i:j] for i, j in pairwise([*begins, len(self.turns)])]

    @property
    def policy_version(self) -> int | None:
        """The oldest policy version that sampled a turn; None if nothing was sampled."""
        return min((t.policy_version for t in self.turns), default=None)

    @property
    def total_reward(self) -> float:
        return sum(t.reward for t in self.turns)

    @property
    def answer_tokens(self) -> int:
        return sum(len(t.answer_ids) for t in self.turns)


@dataclass(frozen=True)
class Example:
    """One supervised example: a conversation whose answers are marked by the loss mask."""

    token_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]  # 1 for tokens to learn


@dataclass(frozen=True)
class EpisodeSpec:
    """An episode to be run: everything that determines its course, except the policy."""

    variant: str
    split: str
    iteration: int
    episode: int
    group: int
    env_seed: int  # determines the instance, or what its name leaves open; equal within a group
    seed: int  # determines the sampling
    instance: str | None = None  # the instance by name (rlpost.envs.base.Enumerated); None: env_seed draws it
    elsewhere: bool = False  # of retention.env instead of env

    @property
    def reset_options(self) -> dict[str, str]:
        """The options with which its environment is reset."""
        options = {"variant": self.variant, "split": self.split}
        return options if self.instance is None else {**options, "instance": self.instance}


@dataclass(frozen=True)
class Canary:
    """A fixed token sequence with the learner's log-probs. An engine proves a swap by scoring it.

    logprobs[i] is log p(token_ids[i + 1] | token_ids[: i + 1]) at temperature 1.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
