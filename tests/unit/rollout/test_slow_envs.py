"""Episodes whose environments sleep, hang, loop or fail: each is its own episode's business, and nobody waits."""

from __future__ import annotations

import asyncio
import random
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import pytest
from gymnasium.spaces import Text

from rlpost.envs.messages import Said, readable
from rlpost.rollout.chat import Chat
from rlpost.rollout.collect import Collector
from rlpost.rollout.engine.protocol import Completion, Sampling
from rlpost.rollout.env_threads import Patience
from rlpost.rollout.scripted import ScriptedEngine
from rlpost.types import Ending, EpisodeSpec, Finish, Trajectory

SAMPLING = Sampling(temperature=1.0, max_new_tokens=200)
TURNS = 3
Trouble = Callable[[int, int], Any]
"""(episode's seed, turn; 0 is the reset) -> what happens before the environment answers."""


class Troubled(gymnasium.Env[str, str]):
    """Repeats what it hears, three times; goes wrong as `trouble` has it."""

    observation_space = Text(1000)
    action_space = Text(1000)

    def __init__(self, trouble: Trouble) -> None:
        self.trouble, self.deals = trouble, list[int]()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        assert seed is not None
        self.deals.append(seed)
        self.turn = 0
        self.trouble(seed, 0)
        return f"deal {seed}", {"instance": str(seed)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        self.trouble(self.deals[-1], self.turn)
        over = self.turn == TURNS
        return f"heard {action}", 1.0, over, False, {"outcome": "HEARD", "success": over}


class Letters(Chat):
    """A token a letter, and no model behind it."""

    def __init__(self) -> None:
        """No tokenizer."""

    def prompt_ids(self, said: Said, tools: Sequence[Any] = ()) -> tuple[int, ...]:
        return tuple(map(ord, readable(said)))

    def written(self, answer: str, stop: Sequence[str]) -> tuple[tuple[int, ...], Finish]:
        return self.prompt_ids(answer), Finish.STOP

    def feedback_ids(self, said: Said, finish: Finish, tools: Sequence[Any] = ()) -> tuple[int, ...]:
        return self.prompt_ids(said)

    def text(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


@pytest.fixture
def chat() -> Chat:
    return Letters()


@pytest.fixture
def hang() -> Iterator[Callable[[], None]]:
    """Hangs, but not beyond the test."""
    event = threading.Event()
    yield lambda: event.wait(120) and None
    event.set()


def specs(count: int) -> list[EpisodeSpec]:
    return [EpisodeSpec("v", "train", 0, i, i, i, 100 + i) for i in range(count)]


class Witness:
    """A collector, and what it asked of engine and environments."""

    def __init__(
        self,
        chat: Chat,
        trouble: Trouble,
        max_live: int = 8,
        timeout_s: float = 30.0,
        kind: Callable[[Trouble], Troubled] = Troubled,
        engine_kind: type[ScriptedEngine] = ScriptedEngine,
    ) -> None:
        self.kind = kind
        self.envs: list[Troubled] = []
        self.dice: list[int] = []  # of the turns, in the order in which they joined the batch
        engine = engine_kind(self._say, chat, max_model_len=4096)
        self.collector = Collector(engine, "troubled", lambda: self._make(trouble), chat, max_live, timeout_s)

    def _say(self, text: str, seed: int) -> str:
        self.dice.append(seed)
        return f"say {seed % 1000}"

    def _make(self, trouble: Trouble) -> Troubled:
        self.envs.append(self.kind(trouble))
        return self.envs[-1]

    def play(self, count: int) -> list[Trajectory]:
        return self.collector.collect(specs(count), SAMPLING, 0)


def quiet(seed: int, turn: int) -> None:
    """No trouble."""


def test_environments_that_sleep_do_so_together(chat: Chat) -> None:
    """8 environments, each 0.5 s in one of its steps: 4 s one after another."""
    began = time.monotonic()
    played = Witness(chat, lambda seed, turn: time.sleep(0.5) if turn == 1 else None).play(8)
    assert time.monotonic() - began < 3
    assert all(t.success and len(t.turns) == TURNS for t in played)


def test_others_play_on_while_one_thinks(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episode 0 is answered only once all others are over; with steps in the decode loop it would wait for ever."""
    monkeypatch.setattr(Patience, "MOST_S", 0.05)
    monkeypatch.setattr(Patience, "MUCH_S", 0.01)
    others_over = threading.Semaphore(0)

    def trouble(seed: int, turn: int) -> None:
        if seed == 0 and turn == 1:
            assert all(others_over.acquire(timeout=30) for _ in range(9))
        if seed != 0 and turn == TURNS:
            others_over.release()

    played = Witness(chat, trouble, max_live=2).play(10)
    assert [t.ending for t in played] == [Ending.TERMINATED] * 10


@pytest.mark.parametrize("turn_of_trouble", [0, 1, 2])
def test_hung_episodes_end_by_name_and_the_batch_goes_on(
    chat: Chat, hang: Callable[[], None], turn_of_trouble: int
) -> None:
    witness = Witness(
        chat,
        lambda seed, turn: hang() if (seed % 3, turn) == (1, turn_of_trouble) else None,
        timeout_s=0.3,
        max_live=3,
    )
    played = witness.play(8)
    hung = [t for t in played if t.episode % 3 == 1]
    assert [t.ending for t in hung] == [Ending.ENV_TIMEOUT] * 3
    what = "step" if turn_of_trouble else "reset"
    assert {t.error for t in hung} == {f"{what} took longer than rollout.env_timeout_s=0.3"}
    heard = ["HEARD"] * (turn_of_trouble - 1)
    said = [*heard, "ENV_TIMEOUT"] if turn_of_trouble else []
    assert [[turn.outcome for turn in t.turns] for t in hung] == [said] * 3
    assert all(t.success for t in played if t.episode % 3 != 1)
    for env in witness.envs:  # what hung is never played with again
        assert all(seed % 3 != 1 for seed in env.deals[:-1])


def test_an_endless_loop_ends_its_own_episode_only(chat: Chat) -> None:
    def trouble(seed: int, turn: int) -> None:
        while (seed, turn) == (2, 1):
            pass

    played = Witness(chat, trouble, timeout_s=0.5).play(4)
    assert [t.ending is Ending.ENV_TIMEOUT for t in played] == [False, False, True, False]


def test_errors_hangs_and_exits_in_one_batch(chat: Chat, hang: Callable[[], None]) -> None:
    def trouble(seed: int, turn: int) -> None:
        if turn == 1:
            (lambda: None, hang, lambda: 1 // 0, lambda: exit("bye"))[seed % 4]()

    played = Witness(chat, trouble, timeout_s=0.3, max_live=4).play(8)
    expected = [Ending.TERMINATED, Ending.ENV_TIMEOUT, Ending.ENV_ERROR, Ending.ENV_ERROR] * 2
    assert [t.ending for t in played] == expected
    assert re.fullmatch(r"SystemExit: bye \(test_slow_envs\.py:\d+\)", played[3].error or "")
    assert [t.ending.broken for t in played] == [False, True, True, True] * 2


def test_an_environment_that_cannot_be_made_or_says_no_text(chat: Chat) -> None:
    class Dumb(Troubled):
        def reset(self, **kwargs: Any) -> Any:
            return 7, {"instance": "x"}

    makers = iter([lambda: Dumb(quiet), lambda: 1 // 0])
    engine = ScriptedEngine(lambda text, seed: "hi", chat)
    play = Collector(engine, "dumb", lambda: next(makers)(), chat, 1, 30.0)
    dumb, none = play.collect(specs(2), SAMPLING, 0)
    assert dumb.error == "TypeError: the observation is no text but int"
    told = r"ZeroDivisionError: integer division or modulo by zero \(test_slow_envs\.py:\d+\)"
    assert re.fullmatch(told, none.error or "")
    assert dumb.ending is none.ending is Ending.ENV_ERROR


@pytest.mark.parametrize("seed", range(3))
def test_results_do_not_depend_on_delays(chat: Chat, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Even where nothing is waited for, and turns join the batch as they happen to come."""
    rng = random.Random(seed)
    delays = {(i, turn): rng.choice([0, 0, 0.01, 0.05]) for i in range(12) for turn in range(TURNS + 1)}
    expected = Witness(chat, quiet, max_live=5).play(12)
    monkeypatch.setattr(Patience, "MOST_S", 0.0)
    delayed = Witness(chat, lambda i, turn: time.sleep(delays[i, turn]), max_live=5)
    assert delayed.play(12) == expected


def test_fast_environments_join_the_batch_in_the_same_order(chat: Chat) -> None:
    """As if they were stepped one after another: the engine's roundings depend on who decodes together."""
    orders = []
    for attempt in range(3):
        rng = random.Random(attempt)
        jitter = Witness(chat, lambda i, turn, rng=rng: time.sleep(1e-3 * rng.random()), max_live=5)
        jitter.play(12)
        orders.append(jitter.dice)
    assert orders[0] == orders[1] == orders[2]
    assert len(set(orders[0])) == 12 * TURNS


class OfOneThread(Troubled):
    """Keeps what belongs to the thread it was made in, and uses it in whatever it is asked."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble)
        self.made_in, self.closed_in = threading.get_ident(), list[int]()
        self.rows = sqlite3.connect(":memory:")
        self.rows.execute("create table heard (said)")
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        self.rows.execute("delete from heard")
        return super().reset(**kwargs)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert asyncio.get_event_loop() is self.loop
        self.loop.run_until_complete(asyncio.sleep(0))
        self.rows.execute("insert into heard values (?)", (action,))
        return super().step(action)

    def close(self) -> None:
        self.rows.close()
        self.loop.close()
        self.closed_in.append(threading.get_ident())


@pytest.mark.parametrize("slow", [False, True])
def test_an_environment_lives_in_one_thread_and_is_closed_there(chat: Chat, slow: bool) -> None:
    witness = Witness(chat, lambda i, turn: time.sleep(0.02 * slow * (i % 3)), max_live=4, kind=OfOneThread)
    for _ in range(2):
        assert [t.error for t in witness.play(12)] == [None] * 12
    made: list[Any] = witness.envs
    assert 1 <= len(made) <= 4, "environments are used again"
    assert not any(env.closed_in for env in made)
    assert witness.collector.close() == []
    assert [env.closed_in for env in made] == [[env.made_in] for env in made]
    assert witness.collector.close() == []


def test_an_environment_that_failed_is_closed_in_its_thread(chat: Chat) -> None:
    def trouble(seed: int, turn: int) -> None:
        if seed % 2 and turn == (seed // 2) % 2:
            raise KeyError(seed)

    witness = Witness(chat, trouble, max_live=4, kind=OfOneThread)
    played = witness.play(8)
    assert [t.ending is Ending.ENV_ERROR for t in played] == [False, True] * 4
    witness.collector.close()
    made: list[Any] = witness.envs
    deadline = time.monotonic() + 20
    while not all(env.closed_in for env in made) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [env.closed_in for env in made] == [[env.made_in] for env in made]


def test_what_goes_wrong_while_closing_is_told(chat: Chat, hang: Callable[[], None]) -> None:
    class Stuck(Troubled):
        def close(self) -> None:
            hang() if len(self.deals) > 1 else 1 // 0

    witness = Witness(chat, lambda i, turn: hang() if i == 7 else None, timeout_s=0.3, max_live=2, kind=Stuck)
    witness.play(3)
    raised, late = sorted(witness.collector.close())
    told = r"ZeroDivisionError: integer division or modulo by zero \(test_slow_envs\.py:\d+\)"
    assert re.fullmatch(told, raised)
    assert late == "close took longer than rollout.env_timeout_s=0.3"


def test_episodes_come_as_they_end_and_are_those_of_collect(chat: Chat) -> None:
    """Two at once: episodes 0 and 1 end while the others wait for a place."""
    witness = Witness(chat, quiet, max_live=2)
    passes = list(witness.collector.stream(specs(6), SAMPLING, 7))
    ended = [pair for each in passes for pair in each]
    assert sorted(place for place, _ in ended) == list(range(6))
    assert {place for place, _ in ended[:2]} == {0, 1}
    assert next(i for i, each in enumerate(passes) if each) <= len(passes) // 2
    assert {turn.policy_version for _, t in ended for turn in t.turns} == {7}
    whole = Witness(chat, quiet, max_live=2).collector.collect(specs(6), SAMPLING, 7)
    assert [t for _, t in sorted(ended, key=lambda pair: pair[0])] == whole


class OneByOne(ScriptedEngine):
    """Answers one request a step, so that the others are live between steps."""

    def step(self) -> list[tuple[str, Completion]]:
        self._queue, later = self._queue[:1], self._queue[1:]
        answered = super().step()
        self._queue = later
        return answered


@pytest.mark.parametrize("passes", range(1, 9, 2))
@pytest.mark.parametrize("engine_kind", [ScriptedEngine, OneByOne])
def test_a_stream_that_is_closed_leaves_nothing_to_the_next_one(
    chat: Chat, passes: int, engine_kind: type[ScriptedEngine]
) -> None:
    """Neither a request in the engine nor an environment's answer; the environments are played with again."""
    sleeps: Trouble = lambda seed, turn: time.sleep(0.02 * (seed % 3))  # noqa: E731
    witness = Witness(chat, sleeps, max_live=4, engine_kind=engine_kind)
    stream = witness.collector.stream(specs(12), SAMPLING, 0)
    for _ in range(passes):
        next(stream)
    stream.close()
    asked = len(witness.dice)
    played = witness.play(6)
    assert played == Witness(chat, quiet, max_live=4).play(6)
    assert len(witness.dice) - asked == 6 * TURNS
    assert len(witness.envs) <= 4


def test_closing_waits_for_an_environment_that_hangs_no_longer_than_its_deadline(
    chat: Chat, hang: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "MOST_S", 0.05)
    witness = Witness(chat, lambda seed, turn: hang() if (seed, turn) == (1, 1) else None, timeout_s=1.0)
    stream = witness.collector.stream(specs(3), SAMPLING, 0)
    next(stream)
    next(stream)
    began = time.monotonic()
    stream.close()
    assert time.monotonic() - began < 3
    assert [t.success for t in witness.play(1)] == [True]
