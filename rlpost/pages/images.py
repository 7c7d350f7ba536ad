"""Images for pages. Every SVG, a figure's or an environment's, stands in a page as the address of an <img>.

There it is inert whatever it holds: an image runs no script and loads nothing, and its ids and styles stay its own.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from markupsafe import Markup

# What XML 1.0 has no place for, however it is written. A browser shows nothing of an SVG that holds one of these.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Image:
    """A template prints it as its <img> element."""

    svg: str  # a document
    alt: str  # what it shows, for those who do not see it

    def __html__(self) -> str:
        """What markupsafe, and so Jinja, takes for the object as HTML."""
        document = _NO_XML.sub("\ufffd", self.svg).encode()
        address = "data:image/svg+xml;base64," + base64.b64encode(document).decode()
        return Markup('<img src="{}" alt="{}">').format(address, self.alt)
