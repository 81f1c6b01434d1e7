"""A headless Chromium on its DevTools protocol: opens a page, clicks where an element is, takes screenshots."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_SECONDS, STEP_SECONDS = 90, 60


def find_chromium() -> str | None:
    """Path of the browser, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page; everything that goes wrong in its scripts is in ``errors``.

    Args:
        folder: for the browser's profile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.errors, self.number = folder, [], 0

    async def __aenter__(self) -> Self:
        command = [
            find_chromium() or "chromium",
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-port=0", "--window-size=1150,1000", f"--user-data-dir={self.folder}", "about:blank",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = (await self._eventually(self._port)).split("\n")[0]
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port}/json/list") as found:
            target = next(page for page in await found.json() if page["type"] == "page")
        self.socket = await self.session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self.session.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its result."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self.socket.receive(timeout=STEP_SECONDS)).data)
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"]["text"])
            if message.get("id") == self.number:
                assert "error" not in message, message
                return message["result"]

    async def open(self, address: str) -> None:
        """Go to an address; ``until`` tells when it is there."""
        await self.send("Page.navigate", url=address)

    async def value(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        await self._eventually(lambda: self.value(expression))

    async def click(self, element: str) -> None:
        """Press the mouse in the middle of the element that an expression gives."""
        where = await self.value(
            f"(() => {{ const e = {element}; e.scrollIntoView(); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=where[0], y=where[1], button="left", clickCount=1)

    async def type(self, element: str, text: str) -> None:
        """Replace the content of an input by text, typed."""
        await self.value(f"{element}.focus(); {element}.select()")
        await self.send("Input.insertText", text=text)

    async def screenshot(self, file: Path) -> None:
        """Save what is seen as PNG."""
        found = await self.send("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(found["data"]))

    def _port(self) -> str | None:
        assert self.process.poll() is None, "the browser did not start"
        file = self.folder / "DevToolsActivePort"
        return file.read_text() if file.exists() else None

    async def _eventually(self, look: Any) -> Any:
        for _ in range(START_SECONDS * 10):
            found = look()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.1)
        raise AssertionError("waited in vain")
