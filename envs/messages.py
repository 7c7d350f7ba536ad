"""What is said in a conversation. An environment says plain text, one `Message`, or several.

"Make 24 ..."                                    one message of the user
Message.of("tool", "21 degrees")                 one message of another role
(Message.of("system", "..."), Message.of("user", "..."))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rlpost.envs.errors import Refused

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Text:
    """A part of a message that is text. Nothing in it ever becomes a control token."""

    text: str


Part = Text  # a union, as soon as there are images


@dataclass(frozen=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        return cls(role, (Text(text),))

    @property
    def text(self) -> str:
        """The text of all parts, one after another."""
        return "".join(part.text for part in self.parts)


Said = str | Message | Sequence[Message]  # what an environment's reset and step may return


def messages_of(said: Said) -> tuple[Message, ...]:
    """`said` as messages; plain text is the user's.

    Raises TypeError for anything else, and Refused where nothing is said.
    """
    if isinstance(said, str):
        return (Message.of("user", said),)
    if isinstance(said, Message):
        return (said,)
    messages = tuple(said)
    wrong = [type(each).__name__ for each in messages if not isinstance(each, Message)]
    if wrong:
        raise TypeError(f"an environment says text or messages, not {wrong[0]}")
    if not messages:
        raise Refused("no message", "say at least one")
    return messages
