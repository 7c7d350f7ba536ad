"""For an environment's author: python -m rlpost.envs.check navigation [--instances N] [--arg key=value ...].

Gymnasium's checker, the expert, seeds, hostile text, the splits and the speed of every variant, as a table.
Environments are made, played and closed as in the rollouts: in a thread that is not Python's main one. The exit code is
0 only if nothing failed.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, SupportsFloat, TypeVar

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from rich.table import Table
from rich.text import Text

from rlpost.envs import adapter
from rlpost.envs.base import Expert, ExpertTurn, Listed, VariantInfo, is_scored, outcome_name
from rlpost.envs.command_line import env_arguments
from rlpost.envs.errors import hint
from rlpost.envs.messages import Said, messages_of, readable
from rlpost.envs.registry import forms, make, refuse_overlap, variants
from rlpost.envs.terminal import plain_console

Env = gymnasium.Env[Any, str]
T = TypeVar("T")

HOSTILE = (
    "",
    " ",
    "\x00",
    "\ud800",
    "{" * 20_000,
    '{"a":' * 5_000,
    "[" * 20_000,
    "9" * 100_000,
    '{"action": null, "formula": null}',
    '{"action": {"a": [1]}, "formula": {"a": [1]}}',
    '{"action": NaN, "formula": 1e999}',
    '{"action": "\\ud800", "formula": "\\ud800"}',
    '"action": ' * 2_000,
    "__import__('os').system('true')",
    "\u202e\u0661\u2603" * 1_000,
)
_RANDOM_TEXTS = 30
_ALPHABET = "{}[]()\"':,=\\/ \n\tabcxyz019+-*\u00e9\u4e16\U0001f600"


class CheckFailed(Exception):
    """The fault that a check found, in one sentence."""


@dataclass(frozen=True)
class Finding:
    check: str
    variant: str  # empty: all variants
    passed: bool
    told: str


@dataclass(frozen=True)
class Subject:
    """The environment under test, by name and arguments, with the number of instances of each variant."""

    name: str
    args: dict[str, Any]
    instances: int
    made: list[Env] = field(default_factory=list)

    def env(self) -> Env:
        self.made.append(make(self.name, **self.args))
        return self.made[-1]

    def close(self) -> None:
        """Close every environment that was made, even if closing another one raises."""
        with ExitStack() as stack:
            while self.made:
                stack.callback(self.made.pop().close)

    def variants(self) -> list[VariantInfo]:
        return variants(self.name, **self.args)


def _elsewhere(work: Callable[[], T]) -> T:
    """Run `work` in a new thread; return its result or raise its error."""
    results: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # sys.exit in an environment must not end the check
            raised.append(error)

    thread = threading.Thread(target=run, name="environment", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return results[0]


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise CheckFailed(sentence)


def _options(variant: str, split: str = "all") -> dict[str, Any]:
    return {"variant": variant, "split": split}


def gymnasium_checker(subject: Subject) -> str:
    """Run Gymnasium's own checker. Its warnings count as failures."""
    spec = EnvSpec("Checked-v0", lambda **_: subject.env(), disable_env_checker=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(spec).unwrapped)
    return "nothing to say"


def _replay(env: Env, observation: Said, talk: list[ExpertTurn], seed: int) -> float:
    """Give the expert's answers; return the reward of those to be learned.

    Raises CheckFailed if the episode differs from the expert's conversation.
    """
    total, over = 0.0, False
    for shown, answer, learn in talk:
        _require(not over, f"seed {seed}: the episode ends before the expert does")
        seen, played = readable(shown), readable(observation)
        _require(
            messages_of(shown) == messages_of(observation),
            f"seed {seed}: the expert saw {seen[:80]!r}, the player {played[:80]!r}",
        )
        observation, reward, terminated, truncated, info = env.step(answer)
        over = terminated or truncated
        earned = float(reward) if learn else 0.0
        wrong = learn and (earned <= 0 if over else earned < 0)  # a call of a tool may have no reward yet
        _require(not wrong, f"seed {seed}: {info['outcome']} ({earned:+g}) for the expert's {answer[:80]!r}")
        total += earned
    _require(terminated and bool(info["success"]), f"seed {seed}: the expert does not succeed")
    return total


def expert(subject: Subject, variant: str) -> str:
    """The expert's conversations, with and without a wrong attempt, equal what a player sees, and end in success."""
    env, total = subject.env(), 0.0
    teacher = env.unwrapped
    if not isinstance(teacher, Expert):
        return "there is none"
    for seed in range(subject.instances):
        for revision in (False, True):
            observation, _ = env.reset(seed=seed, options=_options(variant))
            reward = _replay(env, observation, teacher.expert(revision, random.Random(seed)), seed)
            total += 0.0 if revision else reward
    return (
        f"succeeds on {subject.instances} of {subject.instances}, mean reward {total / subject.instances:.2f}"
    )


def _transcript(env: Env, variant: str, seed: int) -> list[Any]:
    heard: list[Any] = [env.reset(seed=seed, options=_options(variant))]
    try:
        adapter.word(heard[0][1], "difficulty")
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"seed {seed}: {error}") from error
    over = False
    while not over and len(heard) < 4:
        heard.append(env.step("no idea"))
        over = heard[-1][2] or heard[-1][3]
    return heard


def seeds(subject: Subject, variant: str) -> str:
    """Equal seeds give equal episodes, in one environment and in another; different seeds give different ones."""
    one, other, instances = subject.env(), subject.env(), set()
    for seed in range(subject.instances):
        first = _transcript(one, variant, seed)
        _require(first == _transcript(other, variant, seed), f"seed {seed} differs in a second environment")
        _require(first == _transcript(one, variant, seed), f"seed {seed} differs the second time")
        instances.add(first[0][1]["instance"])
    _require(subject.instances == 1 or len(instances) > 1, "every seed gives the same instance")
    return f"{subject.instances} seeds, {len(instances)} instances"


def _texts(rng: random.Random) -> Iterator[str]:
    yield from HOSTILE
    for _ in range(_RANDOM_TEXTS):
        yield "".join(rng.choices(_ALPHABET, k=rng.randrange(200)))


def _as_rollouts_read(shown: str, reward: SupportsFloat, info: Mapping[str, Any]) -> None:
    """CheckFailed for what the rollouts would not take from a step."""
    try:
        adapter.reward(float(reward))
        adapter.parts(info.get("parts", {}))
        adapter.word(info, "answer")
        outcome_name(str(info["outcome"]))
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"{shown}: {error}") from error


def hostile_text(subject: Subject, variant: str) -> str:
    """No text makes `step` raise, and its return values have the right types and are in the observation space."""
    env, count = subject.env(), 0
    env.reset(seed=0, options=_options(variant))
    for text in _texts(random.Random(0)):
        observation, reward, terminated, truncated, info = env.step(text)
        shown = repr(text[:30])
        _require(
            observation in env.observation_space, f"{shown}: the feedback is not of the observation space"
        )
        _as_rollouts_read(shown, reward, info)
        _require(
            isinstance(info["outcome"], str), f"{shown}: the outcome is {info['outcome']!r}, and no text"
        )
        _require(
            not info["success"],
            f"{shown}: it counts as success (outcome {info['outcome']}), as no such text should",
        )
        count += 1
        if terminated or truncated:
            env.reset(options=_options(variant))
    return f"{count} texts"


def splits(subject: Subject, variant: str) -> str:
    """No instance on which a variant is evaluated is one on which any variant is trained."""
    env = subject.env()

    def instances(drawn: str, split: str) -> set[str]:
        options = _options(drawn, split)
        return {env.reset(seed=seed, options=options)[1]["instance"] for seed in range(subject.instances)}

    to_train_on = [each.name for each in subject.variants() if not each.held_out]
    trained = set[str]().union(*(instances(each, "train") for each in to_train_on))
    held_out = instances(variant, "eval")
    refuse_overlap(trained, held_out)
    return f"{len(trained)} and {len(held_out)} instances, none in both"


def rows(subject: Subject) -> str:
    """The irregularities in a list of prompts, which are not failures; empty for an environment without a list."""
    env = subject.env()
    return "; ".join(env.remarks()) or "nothing to say" if isinstance(env, Listed) else ""


def timing(subject: Subject, variant: str) -> str:
    """The average time of a reset and of a step, with separate seeds, so that nothing is cached."""
    env, steps, rng = subject.env(), 0, random.Random(variant)
    resetting = stepping = 0.0
    for seed in [rng.randrange(2**31) for _ in range(subject.instances)]:
        started = time.perf_counter()
        env.reset(seed=seed, options=_options(variant))
        resetting += time.perf_counter() - started
        over = False
        while not over:
            started = time.perf_counter()
            *_, terminated, truncated, _ = env.step("no idea")
            stepping += time.perf_counter() - started
            steps, over = steps + 1, terminated or truncated
    return f"reset {1e3 * resetting / subject.instances:.2f} ms, step {1e3 * stepping / steps:.3f} ms"


EACH_VARIANT: dict[str, Callable[[Subject, str], str]] = {
    "expert": expert,
    "seeds": seeds,
    "hostile text": hostile_text,
    "splits": splits,
    "timing": timing,
}

WITHOUT_EPISODES: dict[str, Callable[[Subject, str], str]] = {"splits": splits}


def _scored(subject: Subject) -> bool:
    """Whether episodes can be played; so they can where making the environment fails, which the checks then tell."""
    try:
        return _alone(lambda mine: str(int(is_scored(mine.env().unwrapped))), subject) == "1"
    except (Exception, SystemExit):
        return True


def _found(check: str, variant: str, run: Callable[[], str]) -> Finding:
    try:
        return Finding(check, variant, True, run())
    except CheckFailed as failed:
        return Finding(check, variant, False, str(failed))
    except (
        Exception,
        SystemExit,
    ) as error:  # an environment may raise anything; the check looks for exactly that
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        return Finding(check, variant, False, f"{type(error).__name__} at {where}: {error}{hint(error)}")


def findings(subject: Subject) -> Iterator[Finding]:
    scored = _scored(subject)
    if scored:
        yield _found("gymnasium's checker", "", lambda: _alone(gymnasium_checker, subject))
    else:
        yield Finding(
            "episodes", "", True, "none are played, as nothing scores them: it serves task=sft alone"
        )
    listed = _found("rows", "", lambda: _alone(rows, subject))
    if listed.passed and listed.told:  # the checks of its variants find any other fault
        yield listed
    for variant in subject.variants():
        for name, check in EACH_VARIANT.items() if scored else WITHOUT_EPISODES.items():
            yield _found(name, variant.name, partial(_alone, check, subject, variant.name))


def _alone(check: Callable[..., str], subject: Subject, *variant: str) -> str:
    """Run a check in a new thread, in which it makes and closes the environments that it plays."""

    def run() -> str:
        mine = replace(subject, made=[])
        try:
            told = check(mine, *variant)
        except BaseException:
            with suppress(Exception):  # the first fault is reported
                mine.close()
            raise
        mine.close()
        return told

    return _elsewhere(run)


def _table(name: str, findings: list[Finding]) -> Table:
    table = Table("check", "variant", "", "found", title=name)
    for each in findings:
        mark = Text("passed", "green") if each.passed else Text("FAILED", "red")
        table.add_row(each.check, each.variant, mark, each.told.encode("ascii", "backslashreplace").decode())
    return table


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rlpost check", description=__doc__)
    parser.add_argument("env", help=f"which environment: {forms()}")
    parser.add_argument("--instances", type=int, default=50, help="of each variant")
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="of the environment")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    try:
        subject = Subject(arguments.env, env_arguments(arguments.arg), max(1, arguments.instances))
        _alone(lambda subject: str(subject.env()), subject)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # the checks report it, with its origin
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    results = list(findings(subject))
    plain_console().print(_table(arguments.env, results))
    return 0 if all(each.passed for each in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
