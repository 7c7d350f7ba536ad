"""Episodes with a scripted engine and the real GeneralPoints environment: alignment, endings, nothing lost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Text

from rlpost.envs import registry
from rlpost.envs.generalpoints.solver import solve
from rlpost.envs.messages import Message
from rlpost.errors import RolloutError
from rlpost.record import failures
from rlpost.rollout.chat import Chat
from rlpost.rollout.collect import Collector
from rlpost.rollout.engine.protocol import Sampling
from rlpost.rollout.scripted import LOGPROB, ScriptedEngine
from rlpost.seeds import derive
from rlpost.types import Ending, EpisodeSpec, Finish, Trajectory

SAMPLING = Sampling(temperature=1.0, max_new_tokens=200)


@pytest.fixture(scope="module")
def chat(random_model: Path) -> Chat:
    return Chat.load(random_model)


def specs(count: int) -> list[EpisodeSpec]:
    return [
        EpisodeSpec("faces_10", "train", 3, i, i, derive("deal", i), derive("dice", i)) for i in range(count)
    ]


def collector(
    chat: Chat, script: Callable[[str, int], str], make_env: Callable[[], Any] | None = None, **kwargs: Any
) -> Collector:
    engine = ScriptedEngine(script, chat, max_model_len=kwargs.pop("max_model_len", 4096))
    make = make_env or (lambda: registry.make("generalpoints", verify_iter=3))
    max_live, timeout_s = kwargs.pop("max_live", 2), kwargs.pop("env_timeout_s", 30.0)
    return Collector(engine, "generalpoints", make, chat, max_live, timeout_s, **kwargs)


def values_in(text: str) -> tuple[int, ...]:
    ranks = re.findall(r"Cards: (.*?)\.", text)[0].split(", ")
    faces = {"A": 1, "J": 10, "Q": 10, "K": 10}
    return tuple(faces[rank] if rank in faces else int(rank) for rank in ranks)


def solution(text: str, seed: int) -> str:
    return json.dumps({"formula": solve(values_in(text), 24)[0].formula()})


def second_try(text: str, seed: int) -> str:
    return solution(text, seed) if "You failed" in text else '{"formula": "1+1"}'


def test_expert_solves_every_episode_in_order_of_the_specs(chat: Chat) -> None:
    wanted = specs(7)
    played = collector(chat, solution).collect(wanted, SAMPLING, policy_version=5)
    assert [t.episode for t in played] == list(range(7))
    assert all(t.success and t.ending is Ending.TERMINATED and len(t.turns) == 1 for t in played)
    assert {turn.policy_version for t in played for turn in t.turns} == {5}
    assert [t.seed for t in played] == [spec.seed for spec in wanted]


def test_tokens_of_two_turns_are_the_templates_own(chat: Chat) -> None:
    (played,) = collector(chat, second_try).collect(specs(1), SAMPLING, 0)
    assert [turn.outcome for turn in played.turns] == ["WRONG_NUMBERS", "CORRECT"]
    example = chat.example([(turn.observation, turn.answer, True) for turn in played.turns])
    assert played.token_ids == list(example.token_ids)
    assert played.loss_mask == list(example.loss_mask)
    assert [turn.reward for turn in played.turns] == [-2.0, 5.0]
    assert all(turn.logprobs == (LOGPROB,) * len(turn.answer_ids) for turn in played.turns)


def test_thought_is_counted_where_a_marker_is_set(chat: Chat) -> None:
    def script(text: str, seed: int) -> str:
        return "well " + solution(text, seed)

    (plain,) = collector(chat, script).collect(specs(1), SAMPLING, 0)
    (marked,) = collector(chat, script, answer_marker='"formula"').collect(specs(1), SAMPLING, 0)
    assert plain.turns[0].thought_tokens == 0
    assert marked.turns[0].thought_tokens == len("well {")
    assert marked.token_ids == plain.token_ids


def test_attempts_run_out(chat: Chat) -> None:
    (played,) = collector(chat, lambda text, seed: "no idea").collect(specs(1), SAMPLING, 0)
    assert played.ending is Ending.TRUNCATED
    assert not played.success
    assert [turn.outcome for turn in played.turns] == ["NO_FORMULA"] * 3


def test_an_answer_cut_short_is_closed_before_the_feedback(chat: Chat) -> None:
    short = Sampling(1.0, 4)
    (played,) = collector(chat, lambda text, seed: "a long answer").collect(specs(1), short, 0)
    assert all(turn.finish is Finish.LENGTH and len(turn.answer_ids) == 4 for turn in played.turns)
    assert played.turns[1].context_ids[0] == chat.eos_id


def test_a_full_context_ends_the_episode_by_name(chat: Chat) -> None:
    prompt = len(chat.prompt_ids(registry.make("generalpoints").reset(seed=0)[0]))
    play = collector(chat, lambda text, seed: "no idea", max_model_len=prompt + 40)
    (played,) = play.collect(specs(1), SAMPLING, 0)
    assert played.ending is Ending.CONTEXT_FULL
    assert len(played.turns) == 1
    (cut,) = collector(chat, second_try, max_model_len=prompt + 10).collect(specs(1), SAMPLING, 0)
    assert [turn.finish for turn in cut.turns] == [Finish.LENGTH]
    assert len(cut.token_ids) == prompt + 10
    (nothing,) = collector(chat, second_try, max_model_len=8).collect(specs(1), SAMPLING, 0)
    assert nothing.ending is Ending.CONTEXT_FULL
    assert nothing.turns == ()


class Broken(gymnasium.Env[str, str]):
    """Raises in `reset` for even seeds, in `step` for odd ones."""

    observation_space = Text(100)
    action_space = Text(100)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        if seed is not None and seed % 2 == 0:
            raise RuntimeError("no cards")
        return "say something", {"instance": "x"}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        raise ValueError("no rules")


def test_environments_that_raise_end_their_own_episodes_only(chat: Chat) -> None:
    wanted = [EpisodeSpec("v", "train", 0, i, i, i, i) for i in range(4)]
    played = collector(chat, lambda text, seed: "hi", Broken).collect(wanted, SAMPLING, 0)
    assert [t.ending for t in played] == [Ending.ENV_ERROR] * 4
    for episode, told in zip(played, ["RuntimeError: no cards", "ValueError: no rules"] * 2, strict=True):
        assert re.fullmatch(rf"{told} \(test_collect\.py:\d+\)", episode.error or "")
    assert [[turn.outcome for turn in t.turns] for t in played] == [[], ["ENV_ERROR"]] * 2


class Says(gymnasium.Env[str, str]):
    """Says what it was made with."""

    observation_space = Text(100)
    action_space = Text(100)

    def __init__(
        self,
        observation: str = "say",
        instance: str = "x",
        feedback: str = "",
        reward: float = 1.0,
        outcome: str = "YES",
    ) -> None:
        self.observation, self.instance = observation, instance
        self.feedback, self.reward, self.outcome = feedback, reward, outcome

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        return self.observation, {"instance": self.instance}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return self.feedback, self.reward, True, False, {"outcome": self.outcome, "success": True}


LONE = "half a pair: \ud83d"


@pytest.mark.parametrize(
    ("said", "error", "outcomes"),
    [
        ({}, None, ["YES"]),
        ({"reward": math.nan}, "ValueError: the reward is nan", ["ENV_ERROR"]),
        ({"reward": -math.inf}, "ValueError: the reward is -inf", ["ENV_ERROR"]),
        (
            {"reward": 1e308},
            r"ValueError: the reward is 1e\+308: at most 1e\+15 can be learnt from",
            ["ENV_ERROR"],
        ),
        ({"outcome": "WRONG\nbecause"}, r"ValueError: the outcome .* is no name: .*", ["ENV_ERROR"]),
        (
            {"outcome": "x" * 101},
            r"ValueError: the outcome .* one line of at most 100 characters, .*",
            ["ENV_ERROR"],
        ),
        ({"feedback": LONE}, "UnicodeEncodeError: .*surrogates not allowed", ["ENV_ERROR"]),
        ({"outcome": LONE}, "UnicodeEncodeError: .*surrogates not allowed", ["ENV_ERROR"]),
        ({"observation": LONE}, "UnicodeEncodeError: .*surrogates not allowed", []),
        ({"instance": LONE}, "UnicodeEncodeError: .*surrogates not allowed", []),
    ],
)
def test_what_no_update_or_file_could_take_is_the_environments_error(
    chat: Chat, said: dict[str, Any], error: str | None, outcomes: list[str]
) -> None:
    (played,) = collector(chat, lambda text, seed: "hi", lambda: Says(**said)).collect(specs(1), SAMPLING, 0)
    assert [turn.outcome for turn in played.turns] == outcomes
    if error is None:
        assert (played.ending, played.error, played.success) == (Ending.TERMINATED, None, True)
    else:
        assert (played.ending, played.success, played.total_reward) == (Ending.ENV_ERROR, False, 0.0)
        assert re.fullmatch(error, played.error or "")


@pytest.mark.parametrize("parts", [{"a": math.nan}, {"a": "x"}, [1.0], {LONE: 1.0}])
def test_parts_that_are_no_numbers_by_name_are_the_environments_error(chat: Chat, parts: object) -> None:
    class InParts(Says):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            said = super().step(action)
            return (*said[:4], {**said[4], "parts": parts})

    (played,) = collector(chat, lambda text, seed: "hi", InParts).collect(specs(1), SAMPLING, 0)
    assert played.ending is Ending.ENV_ERROR


class TestDataSet:
    """Conversations of a file, scored by functions of the user's, through the chat template to trajectories."""

    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        (tmp_path / "conversation_rewards.py").write_text(
            "def right(answer, row):\n    return answer == row['answer']\n"
            "async def short(answer):\n    return None if answer == 'long' else 0.5\n"
            "def broken(answer):\n    raise LookupError('no judge')\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        said = [("user", "1 + 1 ="), ("assistant", "2"), ("user", "2 + 2 =")]
        talk = [{"role": role, "content": content} for role, content in said]
        (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": talk, "answer": "4"}) + "\n")
        return str(tmp_path / "rows.jsonl")

    def played(self, chat: Chat, path: str, answer: str, *score: str) -> list[Trajectory]:
        def make() -> Any:
            return registry.make("dataset", path=path, score=list(score), eval_share=0)

        asked = [EpisodeSpec("default", "train", 0, i, i, i, i) for i in range(3)]
        return collector(chat, lambda text, seed: answer, make).collect(asked, SAMPLING, 0)

    def test_parts_are_recorded_and_every_message_is_shown(self, chat: Chat, path: str) -> None:
        names = ("conversation_rewards:right", "conversation_rewards:short")
        first, *_ = self.played(chat, path, "4", *names)
        (turn,) = first.turns
        assert (turn.reward, turn.parts, turn.outcome) == (1.5, (("right", 1.0), ("short", 0.5)), "CORRECT")
        talk = (Message.of("user", "1 + 1 ="), Message.of("assistant", "2"), Message.of("user", "2 + 2 ="))
        assert turn.context_ids == chat.prompt_ids(talk)
        assert self.played(chat, path, "long", *names)[0].turns[0].parts == (("right", 0.0),)

    def test_a_scorer_that_fails_on_every_answer_stops_the_run_by_name(self, chat: Chat, path: str) -> None:
        played = self.played(chat, path, "4", "conversation_rewards:broken")
        with pytest.raises(
            RolloutError, match=r"iteration 1: not one episode was played\n.*LookupError: no judge"
        ):
            failures.refuse_all(played, "iteration 1")


def test_dice_depend_on_the_address_alone(chat: Chat) -> None:
    seeds: dict[int, list[int]] = {}

    def play(max_live: int) -> list[Trajectory]:
        seen = seeds.setdefault(max_live, [])

        def script(text: str, seed: int) -> str:
            seen.append(seed)
            return "no idea"

        return collector(chat, script, max_live=max_live).collect(specs(4), SAMPLING, 0)

    assert play(1) == play(4)
    assert sorted(seeds[1]) == sorted(seeds[4])
    assert len(set(seeds[1])) == 12
