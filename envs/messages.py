"""The messages of a conversation. An environment returns plain text, one `Message`, or several.

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


Part = Text  # a union, once there are images


@dataclass(frozen=True)
class Message:
    """A message of one role. Raises Refused for a role outside of ROLES and if parts are not a tuple of `Part`."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise Refused(f"a message of the role {self.role!r}", f"give one of {', '.join(ROLES)}")
        if not (isinstance(self.parts, tuple) and all(isinstance(part, Part) for part in self.parts)):
            raise Refused(f"the parts of a message are {self.parts!r}", "write Message.of(role, text)")

    @classmethod
    def of(cls, role: Role, text: str) -> Message:
        return cls(role, (Text(text),))

    @property
    def text(self) -> str:
        """The text of all parts, concatenated."""
        return "".join(part.text for part in self.parts)


Said = str | Message | Sequence[Message]  # what an environment's reset and step may return


def messages_of(said: Said) -> tuple[Message, ...]:
    """`said` as messages; plain text is a message of the user.

    Raises TypeError for anything else, and Refused if it is empty.
    """
    if not isinstance(said, (str, Message, Sequence)):
        raise TypeError(f"the observation is no text but {type(said).__name__}")
    if isinstance(said, str):
        return (Message.of("user", said),)
    messages = (said,) if isinstance(said, Message) else tuple(said)
    wrong = [type(each).__name__ for each in messages if not isinstance(each, Message)]
    if wrong:
        raise TypeError(f"an observation of several messages holds {wrong[0]}, which is no Message")
    if not messages:
        raise Refused("the observation holds no message", "say at least one")
    return messages


def readable(said: Said) -> str:
    """`said` for a person: only the text if it is one message of the user, else each text under its role.

    Raises like `messages_of`.
    """
    messages = messages_of(said)
    if [message.role for message in messages] == ["user"]:
        return messages[0].text
    return "\n".join(f"[{message.role}]\n{message.text}" for message in messages)
