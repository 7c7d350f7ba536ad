"""Play at a terminal: python -m rlpost.envs.play generalpoints --variant faces_11_12_13 [--seed N] [--compat].

With --picture FILE.svg the present instance and what was done so far are drawn there after every answer.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path
from typing import Any

import gymnasium

from rlpost.envs.base import Expert, Pictured, Playable
from rlpost.envs.command_line import env_arguments
from rlpost.envs.messages import readable
from rlpost.envs.registry import forms, make, variants

_HELP = "Type an answer; ? shows a solution; an empty line deals anew; Ctrl-D ends.\n"


class _AsTyped:
    """A player for any environment: a line is the answer, and the hint is the expert's, if there is one."""

    def __init__(self, env: gymnasium.Env[Any, str]) -> None:
        self._env = env

    def read_line(self, line: str) -> str:
        return line

    def hint(self, rng: random.Random) -> str:
        return self._env.expert(False, rng)[-1][1] if isinstance(self._env, Expert) else "none is known"


class _Score:
    def __init__(self) -> None:
        self.deals = self.solved = 0
        self.points = 0.0

    def __str__(self) -> str:
        return f"solved {self.solved} of {self.deals}, {self.points:g} points"


def _draw(player: Playable, target: Path | None) -> None:
    """Replace the picture in one step, so a viewer never reads half of one."""
    if target is not None and isinstance(player, Pictured):
        half = target.with_name(target.name + ".part")
        half.write_text(player.picture(), encoding="utf-8")
        os.replace(half, target)


def _attempt(
    env: gymnasium.Env[Any, str], player: Playable, line: str, rng: random.Random, score: _Score
) -> bool:
    """Give one answer and show the result; return whether the episode is over."""
    feedback, reward, terminated, truncated, info = env.step(player.read_line(line))
    score.points += float(reward)
    score.solved += info["success"]
    print(f"  {info['outcome']} ({float(reward):+g}): {readable(feedback)}")
    if truncated:
        print(f"  No attempts left. One solution: {player.hint(rng)}")
    return terminated or truncated


def _play_deal(
    env: gymnasium.Env[Any, str],
    player: Playable,
    rng: random.Random,
    score: _Score,
    picture: Path | None,
) -> None:
    over = False
    while not over:
        _draw(player, picture)
        line = input("> ").strip()
        if not line:
            return
        if line == "?":
            print(f"  {player.hint(rng)}")
            continue
        over = _attempt(env, player, line, rng, score)
    _draw(player, picture)


def play(
    env: gymnasium.Env[Any, str], options: dict[str, Any], seed: int | None, picture: Path | None = None
) -> None:
    """Play deal after deal until the input ends. EOFError and KeyboardInterrupt end it without an error."""
    inner = env.unwrapped
    player = inner if isinstance(inner, Playable) else _AsTyped(inner)
    if picture is not None and not isinstance(player, Pictured):
        raise SystemExit(f"{type(inner).__name__} has no picture")
    score, rng = _Score(), random.Random(seed)
    print(_HELP)
    try:
        while True:
            prompt, _ = env.reset(seed=seed if score.deals == 0 else None, options=options)
            score.deals += 1
            print(readable(prompt))
            _play_deal(env, player, rng, score, picture)
            print(f"  {score}\n")
    except (EOFError, KeyboardInterrupt):
        print(f"\nThank you for playing: {score}.")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rlpost play", description=_HELP)
    parser.add_argument("env", help=f"which environment: {forms()}")
    parser.add_argument("--variant", help="which rule; an unknown one lists what there is")
    parser.add_argument("--seed", type=int, help="deals the same cards again")
    parser.add_argument("--compat", action="store_true", help="published rewards and faults")
    parser.add_argument(
        "--picture", type=Path, metavar="FILE.svg", help="where to draw, where there is a picture"
    )
    parser.add_argument("--arg", action="append", default=[], metavar="KEY=VALUE", help="of the environment")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    try:
        args = {**({"mode": "compat"} if arguments.compat else {}), **env_arguments(arguments.arg)}
        known = {variant.name: variant.summary for variant in variants(arguments.env, **args)}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.variant is not None and arguments.variant not in known:
        listing = "\n".join(f"  {name}: {summary}" for name, summary in known.items())
        print(f"unknown variant {arguments.variant!r}; there are:\n{listing}", file=sys.stderr)
        return 2
    options: dict[str, Any] = {"split": "all"}
    if arguments.variant is not None:
        options["variant"] = arguments.variant
    try:
        play(make(arguments.env, **args), options, arguments.seed, arguments.picture)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
