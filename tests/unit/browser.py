"""Headless Chromium, driven by its DevTools protocol: a page at a width, what its scripts see, and its picture."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import aiohttp

START_S = 60.0  # a browser's start on a busy machine
ANSWER_S = 60.0
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def chromium() -> str:
    """Its command. Skips the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@dataclass
class Tab:
    """One page. `said` collects what its console and its exceptions said."""

    socket: aiohttp.ClientWebSocketResponse
    said: list[str]
    number: int = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; raises AssertionError for what the browser refuses."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            answer = await self.socket.receive_json(timeout=ANSWER_S)
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.said.append(str(answer["params"]))
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    async def open(self, address: str, width: int, height: int = 900) -> None:
        """Load a page and wait until it is whole."""
        await self.call("Runtime.enable")
        await self.call("Log.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        await self.call("Page.navigate", url=address)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def eval(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        done = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, expression: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true; raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not await self.eval(expression):
                await asyncio.sleep(0.1)

    async def picture(self, file: Path) -> None:
        """The whole page as a PNG."""
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Tab]:
    """A browser with one tab; `folder` is for what it writes. It ends with the block."""
    import aiohttp  # comes with vLLM

    command = [chromium(), *OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(
        [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port = await _port(folder / "profile" / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                address = next(t["webSocketDebuggerUrl"] for t in await answer.json() if t["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                yield Tab(socket, [])
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


async def _port(file: Path) -> int:
    async with asyncio.timeout(START_S):
        while not (file.is_file() and file.read_text().strip()):
            await asyncio.sleep(0.1)
    return int(file.read_text().split()[0])
