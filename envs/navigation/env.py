"""Navigation in text as a Gymnasium environment: text in, text out."""

from __future__ import annotations

import json
import random
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

from rlpost.envs.base import ExpertTurn
from rlpost.envs.choices import Mode
from rlpost.envs.navigation.actions import FORWARD, STOP, read_action, turned
from rlpost.envs.navigation.expert import demonstrate
from rlpost.envs.navigation.free import OnFoot
from rlpost.envs.navigation.importers import open_source
from rlpost.envs.navigation.outcomes import CAUSES, Outcome, Verdict
from rlpost.envs.navigation.picture import svg
from rlpost.envs.navigation.prompts import Texts
from rlpost.envs.navigation.rail import Entry, mended_rail, published_rail
from rlpost.envs.navigation.routes import starting_heading
from rlpost.envs.navigation.sessions import OnRail, Session, Step
from rlpost.envs.navigation.settings import Movement, Settings
from rlpost.envs.navigation.sources import TripError
from rlpost.envs.navigation.trips import Trip
from rlpost.envs.navigation.variants import TRAINED_RULE, Variant
from rlpost.envs.parsing import MAX_ANSWER
from rlpost.envs.splits import Split
from rlpost.envs.texts import ASCII

_MAX_OBSERVATION = 200_000  # characters: the prompt of compat repeats all history
_MAX_TRIPS = 100  # trips drawn before the search for a first heading ends


class Navigation(gymnasium.Env[str, str]):
    """Follow instructions through streets, seeing landmarks and intersections in text (arXiv 2501.17161).

    Args:
        mode: `mended` (relative turns wrap around, observations and feedback are true, the last failed attempt
            truncates) or `compat` (published rail, rewards, feedback and faults).
        prompt: `short` or `published`.
        answer_form: the form of the expert's answers: `steps`, `direct` or `published`. The verifier reads all forms.
        verify_iter: graded attempts at each place.
        movement: `rail` (published) or `free`: a wrong step leads somewhere, and stopping near the end is arriving.
        max_legs: the most legs of a route for training; each leg is two instructions.
        data: a folder of published routes or an OpenStreetMap extract (.osm); empty for generated cities.

    `reset` takes options `variant` (a name of VARIANTS) and `split` (`train`, `eval`, `all`). Its info has
    `instance`, `legs` and `difficulty` (the number of legs); the info of `step` has `outcome`, `success`, `attempt` (at
    this place, from 1) and `rebuilt` (the observation is a whole new prompt, as published, which needs no earlier
    messages).

    The action space lists printable ASCII; `step` grades any string.
    Raises ValueError for bad arguments, options and data, TripError if a variant has no routes.
    """

    causes = CAUSES

    def __init__(
        self,
        mode: str = "mended",
        prompt: str = "short",
        answer_form: str = "steps",
        verify_iter: int = 2,
        movement: str = "rail",
        max_legs: int = 2,
        data: str = "",
    ) -> None:
        self.settings = Settings.checked(mode, prompt, answer_form, verify_iter, movement, max_legs, data)
        self._source = open_source(self.settings.data)
        charset = ASCII | self._source.characters
        self.observation_space = Text(_MAX_OBSERVATION, min_length=1, charset=charset)
        self.action_space = Text(MAX_ANSWER, min_length=0, charset=charset)
        self._rng = random.Random()
        self._texts: Texts | None = None
        self._session: Session
        self._variant: Variant
        self._history: list[Entry] = []
        self._over = True

    @property
    def texts(self) -> Texts:
        """The texts of the current route. Raises ResetNeeded before the first reset."""
        if self._texts is None:
            raise ResetNeeded("there is no route yet: call reset first")
        return self._texts

    @property
    def session(self) -> Session:
        """The current route and how far it is walked. Raises ResetNeeded before the first reset."""
        if self._texts is None:
            raise ResetNeeded("there is no route yet: call reset first")
        return self._session

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        variant, split = self.settings.options(options)
        super().reset(seed=seed)
        if seed is not None:
            self._rng = random.Random(seed)
        trip = self._draw(variant, split)
        self._begin(trip, variant)
        legs = len(trip.legs)
        info = {"instance": trip.instance, "legs": legs, "difficulty": f"legs: {legs}"}
        return self.texts.first(self.session.now), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise ResetNeeded("the episode is over, or none has begun: call reset first")
        step = self._session.take(action)
        self._over = step.over
        if step.moved and not step.over:
            self._history.append(self._session.now)
        info = {
            "outcome": self._named(step.verdict).name,
            "success": step.verdict.outcome is Outcome.ARRIVED,
            "attempt": step.attempt,
            "rebuilt": self.texts.rebuilds and step.moved,
        }
        return self._observation(step), step.verdict.reward, step.terminated, step.truncated, info

    def expert(self, revision: bool, rng: random.Random) -> list[ExpertTurn]:
        """A conversation that walks the rest of the route: [(observation, answer, learn)], with a right last answer.

        After a reset this is the whole route. With `revision`, it contains a wrong attempt (learn=False).
        """
        return demonstrate(self.session, self.texts, revision, rng)

    def read_line(self, line: str) -> str:
        """A typed line as an answer: `f`, `s`, a direction or an action; a line with a brace stays as it is."""
        if "{" in line:
            return line
        short = {"f": FORWARD, "s": STOP}
        action = short[line] if line in short else read_action(line) or turned(line)
        key = "current observation" if self.settings.mode is Mode.COMPAT else "observation"
        return json.dumps({key: self.texts.seen(self.session.now), "action": str(action)}, ensure_ascii=False)

    def hint(self, rng: random.Random) -> str:
        """The right action."""
        return str(self.session.now.action)

    def picture(self) -> str:
        """The city, the instructed route and the way walked so far, as an SVG document."""
        return svg(self.texts.trip, self.session.walked)

    def _draw(self, variant: Variant, split: Split) -> Trip:
        """A trip with its first heading. In compat any heading will do; else the first turn must have a clear word."""
        for _ in range(_MAX_TRIPS):
            trip = self._source.draw(variant, split, self.settings.max_legs, self._rng)
            if self.settings.mode is Mode.COMPAT:
                # As published: all collected routes have a heading of 0, which means that none was chosen.
                return trip.facing(trip.start.facing or self._rng.randrange(360))
            heading = starting_heading(trip, self._rng)
            if heading is not None:
                return trip.facing(heading)
        raise TripError(f"variant {variant.name!r}: no route begins with a turn that both rules can tell")

    def _begin(self, trip: Trip, variant: Variant) -> None:
        settings, rule = self.settings, variant.rule
        if settings.movement is Movement.FREE:
            if trip.city is None:
                raise ValueError("movement='free': published routes have no streets; use movement='rail'")
            self._session = OnFoot(trip, trip.city, rule, settings.verify_iter)
        else:
            rail = published_rail if settings.mode is Mode.COMPAT else mended_rail
            self._session = OnRail(rail(trip, rule, self._rng), rule, settings.mode, settings.verify_iter)
        self._variant = variant
        self._texts = Texts(
            settings.prompt, settings.answer_form, settings.mode, trip, variant.stated_rule, variant.fake_rule
        )
        self._history, self._over = [self._session.now], False

    def _observation(self, step: Step) -> str:
        if step.over:
            return step.verdict.feedback
        return self.texts.later(self._history) if step.moved else self.texts.failed(step.verdict.feedback)

    def _named(self, verdict: Verdict) -> Outcome:
        """The verdict's outcome. Turns get outcomes of their own with a word of the trained rule where another one
        scores, or of the stated rule where that is fake."""
        action = None if verdict.action is None else read_action(verdict.action)
        word = "" if action is None else action.word
        if self._variant.stated is not None and word in self._variant.stated.words:
            return Outcome.STATED_RULE
        misread = self._variant.rule is not TRAINED_RULE and word in TRAINED_RULE.words
        return Outcome.RULE_MISREAD if misread else verdict.outcome
