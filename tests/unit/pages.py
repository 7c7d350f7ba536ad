"""What the tests of both reports ask of a page: as a parser reads it, and as a browser does."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

VOID = {"meta", "img", "br", "hr", "link", "input"}
LOADING = {"script", "link", "iframe", "object", "embed", "base", "form", "image"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_inert(page: Page, html: str) -> None:
    """Nothing on the page loads, runs or leads anywhere; images are in the page itself."""
    assert not LOADING & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert all((image["src"] or "").startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert "@import" not in html
    assert "default-src 'none'" in html


def assert_told(page: Page) -> None:
    """Every picture says what it shows to those who do not see it, is whole XML, and ids are of one element each."""
    assert not page.all("svg"), "a picture is an image, whose ids and styles are its own"
    for image in page.all("img"):
        assert len(image["alt"] or "") > 30
        ElementTree.fromstring(decoded(image))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a[n] for _, a in page.tags for n in ("href", "xlink:href") if a.get(n)}
    assert {str(reference).removeprefix("#") for reference in used} <= set(ids)


def decoded(image: dict[str, str | None]) -> bytes:
    """The document of an <img>."""
    return base64.b64decode((image["src"] or "").partition(",")[2])


@dataclass(frozen=True)
class Opened:
    """What a browser did with a page."""

    dom: str
    console: list[str]
    requests: list[str]  # that the page made of the network; the browser's own are not in it


def open_in_browser(page: Path, folder: Path) -> Opened:
    """Headless Chromium on a file; `folder` is for what it writes. Skips where there is no Chromium."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    net = folder / "net.json"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / 'profile'}"]
    options += [f"--log-net-log={net}", "--enable-logging=stderr", "--dump-dom", page.resolve().as_uri()]
    done = subprocess.run([chromium, *options], capture_output=True, timeout=120, check=True)
    said = done.stderr.decode(errors="replace").splitlines()
    return Opened(done.stdout.decode(), [line for line in said if ":CONSOLE:" in line], _requests(net))


def _requests(net: Path) -> list[str]:
    log = json.loads(net.read_bytes())
    started = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    params = [event["params"] for event in log["events"] if event["type"] == started and "params" in event]
    return [each["url"] for each in params if "url" in each and each["initiator"] != "not an origin"]
