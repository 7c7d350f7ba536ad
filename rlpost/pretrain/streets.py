"""Conversations about navigation: walking routes under rules with other words, naming turns, comparing names.

Walks pass landmarks that are not the one to go to, with names that share a word with it, so that names have to be
compared. The cities are generated, from the training split. No route is walked with the words of a registered rule.
Those words occur in `name_turn` alone, equally for both rules, where a single turn is named and no route is walked.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlpost.envs.choices import Mode
from rlpost.envs.messages import readable
from rlpost.envs.navigation.actions import FORWARD, STOP, turned
from rlpost.envs.navigation.expert import demonstrate
from rlpost.envs.navigation.geometry import (
    COMPASS,
    HALF,
    RELATIVE,
    SECTOR,
    SIDES,
    compass_word,
    eighths,
    relative_word,
)
from rlpost.envs.navigation.names import MODERN
from rlpost.envs.navigation.prompts import AnswerForm, PromptStyle, Texts
from rlpost.envs.navigation.rail import mended_rail
from rlpost.envs.navigation.routes import starting_heading
from rlpost.envs.navigation.rules import Rule, Words
from rlpost.envs.navigation.sessions import OnRail
from rlpost.envs.navigation.sources import Generated
from rlpost.envs.navigation.trips import Trip
from rlpost.envs.navigation.variants import VARIANTS
from rlpost.envs.splits import Split
from rlpost.pretrain.talk import Conversation, Message, Mixture

BY_COMPASS = (  # the eight directions, north first, clockwise
    ("n", "ne", "e", "se", "s", "sw", "w", "nw"),
    ("red", "orange", "yellow", "green", "cyan", "blue", "violet", "pink"),
    ("boreal", "caecian", "levant", "siroc", "austral", "libyan", "ponent", "mistral"),
    ("twelve", "one", "three", "four", "six", "seven", "nine", "ten"),
)
BY_TURN = (  # from sharply left to sharply right
    ("port", "half port", "half starboard", "starboard"),
    ("haw", "soft haw", "soft gee", "gee"),
    ("sinister", "near sinister", "near dexter", "dexter"),
    ("anticlockwise", "bit anticlockwise", "bit clockwise", "clockwise"),
)
_FRAMES = (
    "Follow: ",
    ". Turn: ",
    ". Now: facing ",
    "Now: facing ",
    " face ",
    " go to ",
    " stop at ",
    "next intersection",
    ", no landmark",
    ", intersection",
    '{"observation": "facing ',
    '", "instruction": "',
    '", "steps": "',
    '", "action": "',
    "turn_direction(",
    "forward()",
    "stop()",
    "go on",
    "there",
    "slightly ",
    " is wrong here. Try again.",
    "Name the turn",
    ". Facing ",
    ", face ",
)
_SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu"]
_TRAINED = VARIANTS["absolute"]  # used for its cities and route lengths, not for its words
_LEGS = (1, 1, 2, 2, 2, 3)
_CITIES = Generated()


@dataclass(frozen=True)
class Wording:
    """A rule with other words: eight for the compass, or four relative to the walker's heading."""

    words: tuple[str, ...]

    def word(self, facing: int, towards: int) -> str:
        if len(self.words) == len(COMPASS):
            return self.words[COMPASS.index(compass_word(towards))]
        return self.words[RELATIVE.index(relative_word(facing, towards))]


def _invented(rng: random.Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


def other_rule(rng: random.Random) -> Wording:
    """A rule that is not registered: mostly with known words, else with invented ones that have only their order."""
    known = BY_TURN if rng.random() < 0.5 else BY_COMPASS
    if rng.random() < 0.8:
        return Wording(rng.choice(known))
    words: dict[str, None] = {}
    while len(words) < len(known[0]):
        words[_invented(rng)] = None
    return Wording(tuple(words))


def random_trip(rng: random.Random) -> Trip:
    """A trip through a training city, with its first heading set."""
    while True:
        trip = _CITIES.draw(_TRAINED, Split.TRAIN, rng.choice(_LEGS), rng)
        heading = starting_heading(trip, rng)
        if heading is not None:
            return trip.facing(heading)


def passes_landmark(trip: Trip) -> bool:
    """Whether a leg passes a landmark on its way to another: who stops at the first one there is, stops too early."""
    return any(view.sighting is not None for leg in trip.legs for view in leg.passed)


def _trip_to_walk(rng: random.Random) -> Trip:
    """A random trip; half of them are drawn until they pass a landmark."""
    passes = rng.random() < 0.5
    while True:
        trip = random_trip(rng)
        if passes_landmark(trip) or not passes:
            return trip


def _invented_names(rng: random.Random) -> Iterator[str]:
    """Names of no meaning, so that the model learns to copy names, not to recall them."""
    while True:
        yield f"{_invented(rng).title()} {_invented(rng).title()}"


def _alike_names(rng: random.Random) -> Iterator[str]:
    """Names that all share their first or their second word, so that both words have to be compared."""
    if rng.random() < 0.5:
        first = rng.choice(MODERN.first)
        return (f"{first} {kind}" for kind in rng.sample(MODERN.kinds, len(MODERN.kinds)))
    kind = rng.choice(MODERN.kinds)
    return (f"{first} {kind}" for first in rng.sample(MODERN.first, len(MODERN.first)))


def _renamed(talk: Conversation, names: Iterator[str]) -> Conversation:
    """The conversation with other names of landmarks. It has fewer of them than `names`."""
    renamed: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        if match[0] not in renamed:
            renamed[match[0]] = next(names)
        return renamed[match[0]]

    return tuple(Message(_NAME.sub(other, m.user), _NAME.sub(other, m.assistant), m.learn) for m in talk)


_NAME = re.compile(f"(?:{'|'.join(MODERN.first)}) (?:{'|'.join(MODERN.kinds)})")


def walk(rng: random.Random) -> Conversation:
    """A route to its end; in a third of the cases one attempt on the way is wrong and gets feedback."""
    rule, trip = other_rule(rng), _trip_to_walk(rng)
    form = AnswerForm.STEPS if rng.random() < 0.95 else AnswerForm.DIRECT
    texts = Texts(PromptStyle.SHORT, form, Mode.MENDED, trip, rule)
    session = OnRail(mended_rail(trip, rule, rng), rule, Mode.MENDED, verify_iter=2)
    turns = demonstrate(session, texts, rng.random() < 1 / 3, rng)
    talk = tuple(Message(readable(observation), answer, learn) for observation, answer, learn in turns)
    make = rng.choice((None, None, _invented_names, _alike_names))
    return talk if make is None else _renamed(talk, make(rng))


def compare_names(rng: random.Random) -> Conversation:
    """A single place: whether the landmark there is the one to go to. In half of the cases it is; else it is mostly one
    whose name shares a word with it."""
    names = _alike_names(rng) if rng.random() < 0.75 else MODERN.landmarks(rng)
    goal, other = next(names), next(names)
    there = rng.random() < 0.5
    seen = f"facing {rng.choice(COMPASS)}, {goal if there else other} on {rng.choice(SIDES)}"
    steps, action = ("there", STOP) if there else ("go on", FORWARD)
    answer = {"observation": seen, "instruction": f"stop at {goal}", "steps": steps, "action": str(action)}
    return (Message(f"Go on, or stop? Now: {seen}. Instruction: stop at {goal}.", json.dumps(answer)),)


def name_turn(rng: random.Random) -> Conversation:
    """A single turn, named with the words of any rule, registered ones included; no route."""
    rules: tuple[Words, ...] = (*Rule, other_rule(rng), other_rule(rng))
    rule = rng.choice(rules)
    facing, towards = (SECTOR * rng.randrange(len(COMPASS)) for _ in range(2))
    while eighths(facing, towards) in (0, HALF):
        towards = SECTOR * rng.randrange(len(COMPASS))
    here, there = compass_word(facing), compass_word(towards)
    answer = {"steps": f"{here} to {there}", "action": str(turned(rule.word(facing, towards)))}
    question = f"Name the turn. Turn: {', '.join(rule.words)}. Facing {here}, face {there}."
    return (Message(question, json.dumps(answer)),)


MIXTURE: Mixture = ((walk, 0.65), (name_turn, 0.2), (compare_names, 0.15))


def walks_by_reserved_rule(talk: Conversation) -> bool:
    """Whether a route is to be walked with the words of a registered rule."""
    rules = [f"Turn: {', '.join(rule.words)}." for rule in Rule]
    return any(m.user.startswith("Follow:") and rule in m.user for m in talk for rule in rules)


def phrases() -> Sequence[str]:
    """The phrases that are one token each: the fixed parts of these texts, and what the walker sees. The words of rules
    (except the compass) and the names of held-out cities stay spelled."""
    return (*_FRAMES, *COMPASS, *(f" on {side}" for side in SIDES), *MODERN.first, *MODERN.kinds)
