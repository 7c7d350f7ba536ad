"""The tasks of the package reasoning-gym: their settings, their levels of difficulty, their questions."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

from rlpost.envs.base import PlainVariant
from rlpost.envs.errors import Refused, UnknownEnvironment
from rlpost.envs.own import told
from rlpost.envs.reasoning_gym.guard import GUARDS, OF_THE_QUESTION, evaluates

DEFAULT = "default"
_NAME = r"[a-z][a-z0-9_]{0,39}"  # of a variant of one's own; files of episodes are named after it
_TAKEN = rf"{DEFAULT}|level_\d+"
_OURS = ("seed", "size")  # settings of a task: `reset` draws the seed, and instances never end
_DIFFER = "with equal seeds its generator asks different questions in different processes"
_UNUSED = {  # as of reasoning-gym 0.1.25
    "composite": "it mixes other tasks; train on those",
    "isomorphic_strings": _DIFFER,
    "knight_swap": _DIFFER,
    "polynomial_multiplication": _DIFFER,
    "ransom_note": _DIFFER,
}


def package() -> ModuleType:
    """The factory of reasoning-gym. Raises Refused if the package is not installed."""
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise UnknownEnvironment(
            f"the package reasoning-gym cannot be imported ({error})", "pip install 'rlpost[reasoning-gym]'"
        ) from error
    return factory  # type: ignore[no-any-return]


def names() -> list[str]:
    """The names of all tasks, except those that cannot be trained on."""
    return sorted(package().DATASETS.keys() - _UNUSED.keys())


@dataclass(frozen=True)
class Level:
    """One difficulty of a task: a variant, and the data set that generates its questions."""

    variant: PlainVariant
    config: Any  # the task's own settings
    make: Callable[..., Any]  # builds the task's data set from its settings

    @cached_property
    def dataset(self) -> Any:
        return self.make(config=self.config)

    def entry(self, seed: int) -> dict[str, Any]:
        """The question for a seed: `question`, `answer`, `metadata`, as the package names them."""
        # Shallow copy: some data sets take a second to build; their questions depend on seed and index only.
        dataset = copy.copy(self.dataset)
        dataset.seed = seed
        entry: dict[str, Any] = dataset[seed % len(dataset)]
        return entry


@dataclass(frozen=True)
class TaskOf:
    """A task with its levels; the first level is for training."""

    name: str
    levels: Mapping[str, Level]
    accepts: Callable[[str], bool] | None  # which answers may reach its scorer; None: all

    @property
    def variants(self) -> dict[str, PlainVariant]:
        return {name: level.variant for name, level in self.levels.items()}

    @cached_property
    def has_answers(self) -> bool:
        """Whether questions come with a right answer."""
        return isinstance(self.levels[DEFAULT].entry(0)["answer"], str)

    def score(self, variant: str, entry: Mapping[str, Any], answer: str) -> float:
        """The score of the task's own scorer, from 0 to 1."""
        return float(self.levels[variant].dataset.score_answer(answer, entry))


def task(name: str, settings: Mapping[str, Any], held_out: object) -> TaskOf:
    """A task with the user's settings over its defaults.

    `held_out`: further variants, for evaluation alone, each a name and the settings that it has in place of `settings`.

    Raises Refused for unknown or invalid settings.
    """
    try:
        return _task(name, json.dumps(settings, sort_keys=True), json.dumps(held_out))
    except TypeError as error:
        raise Refused(
            f"reasoning_gym:{name}: settings must be plain data: {error}", "see its levels"
        ) from error


@lru_cache(maxsize=64)  # every environment of a worker asks for it
def _task(name: str, settings: str, held_out: str) -> TaskOf:
    factory = package()
    if name not in names():
        close = [] if name in _UNUSED else difflib.get_close_matches(name, names())
        raise UnknownEnvironment(
            f"reasoning_gym:{name}: {_UNUSED.get(name, 'there is no such task')}",
            f"did you mean {' or '.join(close)}?"
            if close
            else "python -m rlpost.envs.list reasoning_gym: lists them",
        )
    make, config_class = factory.DATASETS[name]
    given = json.loads(settings)
    base = _configured(name, config_class, given)
    variants = [
        (PlainVariant(DEFAULT, False, _summary("as set", base, None)), base),
        *_levels(factory.CURRICULA.get(name), given, base),
        *_held_out(name, given, base, json.loads(held_out)),
    ]
    levels = {variant.name: Level(variant, config, make) for variant, config in variants}
    return TaskOf(name, levels, _guard(name, make))


def _held_out(
    name: str, given: dict[str, Any], base: Any, held_out: object
) -> Iterator[tuple[PlainVariant, Any]]:
    """The variants that the user holds out. Raises Refused for a bad name, or settings that the task does not take."""
    if not isinstance(held_out, dict) or not all(isinstance(own, dict) for own in held_out.values()):
        raise Refused(f"held_out={held_out!r}: not names with settings", 'give {"NAME": {"SETTING": VALUE}}')
    for variant, own in held_out.items():
        if not re.fullmatch(_NAME, variant) or re.fullmatch(_TAKEN, variant):
            raise Refused(
                f"held_out: {variant!r} is no name of a variant of one's own",
                "begin with a letter, go on with a to z, 0 to 9 and _, 40 in all; not default or level_0",
            )
        config = _configured(f"{name}, held_out.{variant}", type(base), {**given, **own})
        if config == base:
            raise Refused(f"held_out.{variant}: has the settings of training", "give some that differ")
        yield PlainVariant(variant, True, _summary("held out", config, base)), config


def _configured(name: str, config_class: Any, given: dict[str, Any]) -> Any:
    """The task's configuration. Raises Refused for settings that it does not know or take."""
    known = _known(name, config_class, given)
    try:
        return _checked(config_class(**known))
    except Exception as error:  # the task's own checks raise anything, most of them AssertionError
        raise Refused(f"reasoning_gym:{name}: {told(error)}", "change its settings") from error


def _known(name: str, config_class: Any, given: dict[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(config_class) if field.name not in _OURS]
    if unknown := sorted(given.keys() - set(known)):
        raise Refused(
            f"reasoning_gym:{name}: unknown setting {', '.join(unknown)}",
            f"there are: {', '.join(known)}; outside held_out also answer_tag and held_out",
        )
    return given


def _guard(name: str, dataset_class: type) -> Callable[[str], bool] | None:
    """The check of answers for a task. Raises Refused if its scorer evaluates answers as code and none is defined."""
    if name not in GUARDS and name not in OF_THE_QUESTION and evaluates(dataset_class):
        raise UnknownEnvironment(
            f"reasoning_gym:{name}: its scorer evaluates answers as Python code",
            "choose another task, or add a rule to envs/reasoning_gym/guard.py",
        )
    return GUARDS.get(name)


def _levels(curriculum: Any, given: dict[str, Any], base: Any) -> Iterator[tuple[PlainVariant, Any]]:
    """The levels of the task's curriculum: the first for training, harder ones held out.

    Levels that the task's own checks refuse are left out, since some curricula go beyond their task.
    """
    count = 0 if curriculum is None else max(len(a.levels) for a in curriculum().attributes.values())
    for level in range(count):
        try:
            config = _checked(_at_level(curriculum(), level, given))
        except Exception:  # see _configured
            continue
        summary = _summary(f"level {level} of 0 to {count - 1}", config, base)
        yield PlainVariant(f"level_{level}", level > 0, summary), config


def _checked(config: Any) -> Any:
    """Settings that the task itself accepts, with a fixed seed, because its data set would draw one otherwise."""
    if hasattr(config, "validate"):
        config.validate()
    return replace(config, seed=0)


def _at_level(curriculum: Any, level: int, given: dict[str, Any]) -> Any:
    """The level's own range of each setting, without the ranges of easier levels."""
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode

    curriculum.set_global_level(level)
    context = DefaultCurriculumContext(mode=RangeAttributeMode.UPPER_BOUND)
    return curriculum.generate_configuration(given, context)


def _summary(what: str, config: Any, base: Any) -> str:
    """A description of a level, with its settings that differ from those of `base`."""
    shown = [
        f"{field.name}={getattr(config, field.name)}"
        for field in fields(config)
        if field.name not in _OURS
        and (base is None or getattr(config, field.name) != getattr(base, field.name))
    ]
    return f"{what}: {', '.join(shown)}" if shown else what
