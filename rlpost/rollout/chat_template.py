"""A model's chat template under a run's settings: renders messages as text and refuses what it cannot write.

A conversation is only ever appended to, so the template must write a longer conversation as the shorter one plus more:

    prompt(opening)        <|user|>Make 24 ...<|end|><|assistant|>
    the model's answer     ...
    after_answer(said)     <|end|><|user|>You failed ...<|end|><|assistant|>

A template fails this if it drops the thinking of earlier answers, moves the tools to the last message, or writes one
role as another. It is refused, with the reason, for the roles that an environment uses, before any episode is played.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser

from rlpost.config.keys import refusal
from rlpost.config.schema import RolloutConfig
from rlpost.envs.messages import Message, Role
from rlpost.errors import ConfigError, ModelError

Tools = Sequence[Mapping[str, Any]]

_ANSWER = "rlpost-answer-mark"  # stands for an answer while the template is taken apart
_THINKING = f"<think>\nrlpost-thought-mark\n</think>\n\n{_ANSWER}"
# A role, and the roles that a template may silently write in its place.
_CONFUSED: Mapping[Role, tuple[Role, ...]] = {
    "assistant": ("user",),
    "system": ("user", "assistant"),
    "tool": ("user", "assistant", "system"),
}
_SHOWN = 40  # characters of a difference that a message shows


class _Generation(jinja2.ext.Extension):
    """The tag `{% generation %}` of transformers' templates, so that they can be parsed."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """Renders conversations and checks that they can be appended to.

    Raises:
        ModelError: there is no chat template, or it cannot be rendered.
        ConfigError: rollout.template_args or rollout.system_prompt do not fit this template.
    """

    def __init__(self, tokenizer: Any, settings: RolloutConfig) -> None:
        self._tokenizer, self._name = tokenizer, tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise ModelError(f"{self._name} has no chat template; rlpost needs one to build prompts.")
        self._args = dict(settings.template_args)
        self._system_prompt: str | None = None
        self._passed: set[tuple[object, ...]] = set()  # checks that have passed
        self._refuse_args()
        self._refuse_system_prompt(settings.system_prompt)
        self._system_prompt = settings.system_prompt

    def opening(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """An environment's first messages, with rollout.system_prompt in front.

        Raises ConfigError if the environment itself says a system message.
        """
        if self._system_prompt is None:
            return tuple(messages)
        if any(message.role == "system" for message in messages):
            raise ConfigError(
                _refused_prompt(
                    self._system_prompt, "the environment says a system message of its own", "leave it out"
                )
            )
        return (Message.of("system", self._system_prompt), *messages)

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The text up to the point where the model's answer begins."""
        return self.render(_plain(messages), tools)

    def after_answer(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The text between two answers: the end of the turn, `messages`, and the beginning of the next answer."""
        asked = [Message.of("user", "x"), Message.of("assistant", _ANSWER)]
        return self.render(_plain([*asked, *messages]), tools).partition(_ANSWER)[2]

    def check_opening(self, messages: Sequence[Message], tools: Tools = ()) -> None:
        """Raise ModelError unless the template can write messages of these roles, in this order, and the tools."""
        roles = _roles(messages)
        if self._once("opening", roles, tools):
            self._refuse("open with", roles, self._roles_fault(roles, tools) or self._tools_fault(tools))

    def check_feedback(self, messages: Sequence[Message], tools: Tools = ()) -> None:
        """Raise ModelError unless messages of these roles can be appended to an answer repeatedly."""
        roles = _roles(messages)
        if self._once("feedback", roles, tools):
            fault = self._roles_fault(("user", "assistant", *roles), tools)
            self._refuse("go on with", roles, fault or self._append_fault(roles, tools))

    def _once(self, what: str, roles: tuple[Role, ...], tools: Tools) -> bool:
        key = (what, roles, json.dumps(list(tools)) if tools else "")
        fresh = key not in self._passed
        self._passed.add(key)
        return fresh

    def _refuse(self, what: str, roles: tuple[Role, ...], fault: str | None) -> None:
        if fault is None:
            return
        self._passed.clear()  # a failure must not leave anything recorded as checked
        raise ModelError(
            f"The chat template of {self._name} cannot {what} what the environment says ({', '.join(roles)}): {fault}\n"
            "  remedy: take a model whose template does, or give chat_template in its tokenizer_config.json"
        )

    def _roles_fault(self, roles: tuple[Role, ...], tools: Tools) -> str | None:
        """What the template writes wrongly in messages of these roles; None if nothing."""
        said = _marked(roles)
        try:
            text = self.prompt(said, tools)
        except ModelError as error:
            return str(error)
        if lost := [message.role for message in said if message.text not in text]:
            return f"it leaves out what the role {lost[0]} says"
        for place, role in enumerate(roles):
            for other in _CONFUSED.get(role, ()):
                if text == self._if_rendered(_marked((*roles[:place], other, *roles[place + 1 :])), tools):
                    return f"it writes the role {role} as it writes {other}"
        return None

    def _if_rendered(self, messages: Sequence[Message], tools: Tools) -> str | None:
        try:
            return self.prompt(messages, tools)
        except ModelError:
            return None

    def _tools_fault(self, tools: Tools) -> str | None:
        if not tools:
            return None
        asked = self.opening([Message.of("user", "x")])
        text = self.prompt(asked, tools)
        unsaid = [tool["function"]["name"] for tool in tools if tool["function"]["name"] not in text]
        if unsaid or text == self.prompt(asked):
            return "it does not tell the model of the tools that the environment declares"
        return None

    def _append_fault(self, roles: tuple[Role, ...], tools: Tools) -> str | None:
        """The difference between a rendered conversation of three turns and what a rollout appends; None if equal."""
        opening, said = self.opening([Message.of("user", "rlpost-question-mark")]), _marked(roles)
        between = self.after_answer(said, tools)
        for answer, reason in (
            (_ANSWER, "it writes a turn otherwise once the conversation goes on"),
            (_THINKING, "it drops or changes the thinking of an earlier answer"),
        ):
            appended = f"{self.prompt(opening, tools)}{answer}{between}{answer}{between}"
            turn = (Message.of("assistant", answer), *said)
            whole = self.prompt((*opening, *turn, *turn), tools)
            if whole != appended:
                return f"{reason}: {_difference(whole, appended)}"
        return None

    def render(self, messages: Sequence[Mapping[str, str]], tools: Tools, answer: bool = True) -> str:
        """A conversation as text; with `answer`, up to the point where the model's answer begins.

        Raises ModelError if the template raises.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=answer,
                **self._args,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ModelError(f"The chat template of {self._name} refuses {roles}: {error}") from error
        return str(text)

    def _refuse_args(self) -> None:
        reads = self._reads() if self._args else frozenset()
        own = {"messages", *inspect.signature(self._tokenizer.apply_chat_template).parameters}
        for name, value in self._args.items():
            if name in own:
                reason = "rlpost gives it itself"
            elif name not in reads:
                reason = f"the chat template of {self._name} never reads it"
            else:
                continue
            may = ", ".join(sorted(reads - own)) or "nothing: leave it out"
            raise ConfigError(refusal(f"rollout.template_args.{name}", value, reason, f"it reads {may}"))

    def _reads(self) -> frozenset[str]:
        """The names of the variables that the template reads."""
        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", _Generation], autoescape=True)
        sources: Iterator[str] = iter([self._tokenizer.chat_template])
        if isinstance(self._tokenizer.chat_template, Mapping):
            sources = iter(self._tokenizer.chat_template.values())
        return frozenset().union(
            *(jinja2.meta.find_undeclared_variables(environment.parse(source)) for source in sources)
        )

    def _refuse_system_prompt(self, system_prompt: str | None) -> None:
        if system_prompt is None:
            return
        if fault := self._roles_fault(("system", "user"), ()):
            reason = f"the chat template of {self._name} has no system role: {fault}"
            raise ConfigError(
                _refused_prompt(
                    system_prompt, reason, "leave it out, and let the environment say it to the user"
                )
            )


def _refused_prompt(system_prompt: str, reason: str, remedy: str) -> str:
    shown = system_prompt if len(system_prompt) <= _SHOWN else system_prompt[:_SHOWN] + "..."
    return refusal("rollout.system_prompt", repr(shown), reason, remedy)


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.text} for message in messages]


def _roles(messages: Sequence[Message]) -> tuple[Role, ...]:
    return tuple(message.role for message in messages)


def _marked(roles: Sequence[Role]) -> tuple[Message, ...]:
    """One message per role, each with its own text."""
    return tuple(Message.of(role, f"rlpost-mark-{place}.") for place, role in enumerate(roles))


def _difference(whole: str, appended: str) -> str:
    """The place where two texts differ."""
    pairs = zip(whole, appended, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(appended)))
    start = max(0, at - _SHOWN // 2)
    return (
        f"it writes {whole[start : start + _SHOWN]!r} where {appended[start : start + _SHOWN]!r} was played"
    )
