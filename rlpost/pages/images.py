"""Images for pages. Every SVG, of a figure or an environment, is in a page as the address of an <img> element.

This makes any SVG inert: an image runs no script and loads nothing, and its ids and styles stay separate.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from markupsafe import Markup

# Characters that XML 1.0 does not allow in any form. A browser shows nothing of an SVG that contains one.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Image:
    """An SVG that a template renders as an <img> element."""

    svg: str  # an SVG document
    alt: str  # what it shows, for readers who cannot see it

    def __html__(self) -> str:
        """The HTML of the object, for markupsafe and so for Jinja."""
        document = _NO_XML.sub("\ufffd", self.svg).encode()
        address = "data:image/svg+xml;base64," + base64.b64encode(document).decode()
        return Markup('<img src="{}" alt="{}">').format(address, self.alt)
