"""Calls scoring functions on an answer: what each receives, what it may return, and how several are added up.

A user's function receives the arguments that its parameters name:

    answer     the model's answer, a str
    prompt     the last message of the user, a str
    messages   the conversation before the answer: [{"role": ..., "content": ...}, ...]
    row        the row, as a separate plain dict
    NAME       any other name: the row's field of that name

A parameter with a default does not need its field. `**others` receives everything. The function may be `async`: several
are awaited together, in the environment's thread.

The meanings of return values:

    a bool, or a finite number (also NumPy's, or a tensor of one element)   its reward
    a dict of those                                                         parts; their sum is its reward
    None, alone or in a dict                                                does not apply: left out of the sum
    (one of these, "OUTCOME")                                               with a name for the outcome

The reward of an answer is the sum of weight * reward over the functions that apply. The first of them decides whether
the answer is a success (its own reward, without the weight, is at least `success_at`) and names the outcome. Anything
else is a failure: an exception, another return type, NaN and infinities, and an answer to which no function applies.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

from rlpost.envs import own
from rlpost.envs.base import MAX_REWARD, outcome_name
from rlpost.envs.dataset.conversation import Asked
from rlpost.envs.dataset.scoring import READY, ready
from rlpost.envs.dataset.settings import Settings
from rlpost.envs.errors import Refused
from rlpost.envs.messages import messages_of
from rlpost.envs.one_turn import Verdict

Score = Callable[[str, Asked], Any]
"""Maps (the model's answer, the question) to a function's return value, or an awaitable for it."""

_GIVEN = ("answer", "prompt", "messages", "row")
_DEFINE = "define it as: def score(answer: str, row: dict) -> float"
_RETURN = (
    f"must be a bool, a number of at most {MAX_REWARD:g}, a dict of such, None, or one of these with an outcome:"
    " (reward, 'OUTCOME')"
)


@dataclass(frozen=True)
class Function:
    name: str  # the name of its part in the metrics
    reference: str  # as in the setting `score`
    weight: float
    call: Score


@dataclass(frozen=True)
class Returned:
    """The return value of one function for an answer. `reward` is None if the function does not apply."""

    reward: float | None
    parts: Mapping[str, float]  # from a returned dict
    outcome: str | None


class Scorer:
    """All functions of a data set. Async ones run in a separate event loop, which `close` ends.

    Raises Refused if one cannot be imported, or needs an argument that is neither provided nor a field of any row.
    """

    def __init__(self, settings: Settings, fields: Collection[str]) -> None:
        names = _names(settings.score)
        weights = settings.weights or (1.0,) * len(settings.score)
        self._functions = [
            Function(name, reference, weight, _callable(reference, settings, fields))
            for name, reference, weight in zip(names, settings.score, weights, strict=True)
        ]
        self._success_at = settings.success_at
        self._runner: asyncio.Runner | None = None

    def __call__(self, answer: str, question: Asked) -> Verdict:
        """Score an answer. Raises what a function raises, and TypeError or ValueError for a bad return value."""
        results = self._awaited(self._called(answer, question))
        pairs = zip(self._functions, results, strict=True)
        return self._verdict(
            [(function, returned(result, f"score={function.reference}")) for function, result in pairs]
        )

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def _called(self, answer: str, question: Asked) -> list[Any]:
        """What each function returned. Where one raises, what the others would await is closed."""
        results = list[Any]()
        try:
            for function in self._functions:
                results.append(function.call(answer, question))
        except BaseException:
            for result in filter(inspect.iscoroutine, results):
                result.close()
            raise
        return results

    def _awaited(self, results: list[Any]) -> list[Any]:
        waiting = {i: result for i, result in enumerate(results) if inspect.isawaitable(result)}
        if waiting:
            self._runner = self._runner or asyncio.Runner()
            for i, result in zip(waiting, self._runner.run(_together(waiting.values())), strict=True):
                results[i] = result
        return results

    def _verdict(self, said: list[tuple[Function, Returned]]) -> Verdict:
        applying = [(function, each, each.reward) for function, each in said if each.reward is not None]
        if not applying:
            names = ", ".join(function.reference for function, _ in said)
            raise ValueError(
                f"score={names}: applies to no part of this answer: every function returned None, or no"
                " reward in a dict"
            )
        reward = sum(function.weight * own for function, _, own in applying)
        if not abs(reward) <= MAX_REWARD:
            raise ValueError(f"the weighted sum of score={[f.reference for f, _, _ in applying]} is {reward}")
        _, first, own_reward = applying[0]
        outcome, success = outcome_of(own_reward, first.outcome, self._success_at)
        return Verdict(reward, outcome, success, self._parts(applying))

    def _parts(self, applying: Sequence[tuple[Function, Returned, float]]) -> dict[str, float]:
        """The parts by name. For a single function, only those of its dict, since its reward is the answer's."""
        if len(self._functions) == 1:
            return dict(applying[0][1].parts)
        parts = dict[str, float]()
        for function, each, own_reward in applying:
            parts[function.name] = own_reward
            parts |= {f"{function.name}.{part}": value for part, value in each.parts.items()}
        return parts


async def _together(waiting: Collection[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*waiting)


def _names(references: Sequence[str]) -> list[str]:
    """The functions' own names; the whole references if two functions have the same name."""
    short = [reference.rpartition(":")[2] for reference in references]
    return short if len(set(short)) == len(short) else [each.replace(":", ".") for each in references]


def outcome_of(reward: float, named: str | None, success_at: float) -> tuple[str, bool]:
    """The outcome's name (`named`, if given) for a reward, and whether it is a success."""
    success = reward >= success_at
    return named or ("CORRECT" if success else "PARTIAL" if reward > 0 else "WRONG"), success


def returned(result: object, told: str) -> Returned:
    """A function's return value in one form. Raises TypeError or ValueError for a bad one, with the name `told`."""
    outcome, value = None, result
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str) and result[1]:
        value, outcome = result
    try:
        outcome = outcome and outcome_name(outcome)
    except ValueError as error:
        raise ValueError(f"{told}: {error}") from None
    try:
        if isinstance(value, Mapping):
            parts = {str(key): number(each) for key, each in value.items() if each is not None}
            return Returned(math.fsum(parts.values()) if parts else None, parts, outcome)
        return Returned(None if value is None else number(value), {}, outcome)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{told} returned {_shown(result)}: {_RETURN}") from None


def number(reward: object) -> float:
    """The reward as a float. Raises TypeError if it is not a number, ValueError if not finite or above MAX_REWARD."""
    if not isinstance(reward, (Real, Decimal)) and callable(item := getattr(reward, "item", None)):
        try:
            reward = item()
        except Exception:  # a tensor of more than one element, or an `item` of another kind
            raise TypeError("no number") from None
    if not isinstance(reward, (Real, Decimal)):
        raise TypeError("no number")
    try:
        value = float(reward)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError("not finite")
    if abs(value) > MAX_REWARD:
        raise ValueError("huge")
    return value


def _shown(result: object) -> str:
    try:
        return repr(result)[:200]
    except Exception:  # it is the scorer's own object
        return f"an object of {type(result).__name__}"


def _callable(reference: str, settings: Settings, fields: Collection[str]) -> Score:
    if reference in READY:
        of_row = ready(reference, settings)
        return lambda answer, question: of_row(answer, question.data)
    if ":" not in reference:
        raise Refused(
            f"score={reference!r}: is neither {', '.join(READY)} nor a function",
            "write my_module:my_function",
        )
    function = own.load(reference)
    _refuse_no_scorer(reference, function)
    names, everything = _asked_for(reference, function, fields)
    return functools.partial(_call, reference, function, names, everything)


def _refuse_no_scorer(reference: str, function: Any) -> None:
    """Raise Refused for a class, and for a name that the user's module only imported from the standard library."""
    while isinstance(function, functools.partial):
        function = function.func
    home = str(getattr(function, "__module__", None) or "").partition(".")[0]
    if isinstance(function, type) or home in sys.stdlib_module_names:
        what = "a class" if isinstance(function, type) else f"of Python's module {home}"
        raise Refused(f"score={reference}: is no scorer but {what}", _DEFINE)


def _asked_for(reference: str, function: Any, fields: Collection[str]) -> tuple[dict[str, bool], bool]:
    """The parameters by name, with whether each is required, and whether the function takes all others."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise Refused(f"score={reference}: cannot be called: {error}", _DEFINE) from error
    names = dict[str, bool]()
    for each in parameters:
        needed = each.default is inspect.Parameter.empty
        if each.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL):
            continue
        if each.kind is inspect.Parameter.POSITIONAL_ONLY and needed:
            raise Refused(f"score={reference}: its parameter {each.name} cannot be given by name", _DEFINE)
        if each.name in (*_GIVEN, *fields):
            names[each.name] = needed
        elif needed:
            known = ", ".join((*_GIVEN, *sorted(set(fields) - set(_GIVEN))))
            raise Refused(
                f"score={reference}: asks for {each.name!r}, which is neither given nor a field of the rows",
                f"a function may ask for: {known}; {_DEFINE}",
            )
    return names, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _call(
    reference: str, function: Any, names: Mapping[str, bool], everything: bool, answer: str, asked: Asked
) -> Any:
    row = copy.deepcopy(asked.data)  # a function's changes to the row must not leave the function
    said = messages_of(asked.observation)
    known = {
        **row,
        "answer": answer,
        "prompt": next((each.text for each in reversed(said) if each.role == "user"), ""),
        "messages": [{"role": each.role, "content": each.text} for each in said],
        "row": row,
    }
    if missing := [name for name, needed in names.items() if needed and name not in known]:
        raise KeyError(f"score={reference} asks for {missing[0]!r}, which this row lacks")
    return function(**(known if everything else {name: known[name] for name in names if name in known}))
