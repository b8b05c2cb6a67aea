"""A headless Chromium, spoken to over its debugging pipe: no driver, no further package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from tests.support.patience import PATIENCE

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_KEYS: Final = {
    "Tab": ("Tab", 9, ""),
    "Enter": ("Enter", 13, "\r"),
    "Space": (" ", 32, " "),
}


# The browser reads commands from 3 and writes replies to 4.
_EXEC: Final = """
import fcntl, os, sys
to_browser, from_browser = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(to_browser, 3)
os.dup2(from_browser, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(Exception):
    """The browser refused a command."""


class Browser:
    """One browser for all tests; each test has pages of its own, with cookies of their own."""

    def __init__(self, commands: int, replies: int) -> None:
        self._commands = commands
        self._replies = replies
        self._rest = b""
        self._last_id = 0

    async def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events are dropped."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        with anyio.fail_after(PATIENCE):
            while True:
                reply = await self._read()
                if reply.get("id") == self._last_id:
                    if "error" in reply:
                        raise BrowserError(f"{method}: {reply['error']}")
                    result: dict[str, Any] = reply["result"]
                    return result

    async def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            await anyio.wait_readable(self._replies)
            chunk = os.read(self._replies, 1 << 20)
            assert chunk, "the browser has ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        reply: dict[str, Any] = json.loads(line)
        return reply

    async def page(self, *, width: int = 1024, height: int = 800, dark: bool = False) -> Page:
        """Open a page."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        await page.call("Page.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await page.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await page.call("Emulation.setEmulatedMedia", features=[scheme])
        return page


class Page:
    """One page."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command for this page."""
        return await self._browser.call(method, self._session, **params)

    async def open(self, url: str) -> None:
        """Open an address, and wait until the page is there."""
        result = await self.call("Page.navigate", url=url)
        assert "errorText" not in result, result
        await self.until(f"location.href.startsWith({json.dumps(url)})")

    async def run(self, script: str) -> Any:
        """Return what a script makes, as JSON has it."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until a condition holds, on this page or the next one, once it is there."""
        expression = f"document.readyState === 'complete' && Boolean({condition})"
        with anyio.move_on_after(PATIENCE):
            while True:
                with suppress(BrowserError):  # between two pages there is none
                    result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
                    if result["result"].get("value") is True:
                        return
                await anyio.sleep(0.02)  # what a page shows comes by no event
        raise AssertionError(f"never true: {condition}; the page says: {await self.text()}")

    async def until_text(self, text: str) -> None:
        """Wait until the page shows a text."""
        await self.until(f"document.body.innerText.includes({json.dumps(text)})")

    async def text(self) -> str:
        """Return what the page shows."""
        return str(await self.run("document.body.innerText"))

    async def click(self, selector: str) -> None:
        """Click the first element that matches."""
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str) -> None:
        """Press a key."""
        name, code, text = _KEYS[key]
        common = {"key": name, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def tab_to(self, condition: str) -> None:
        """Press Tab until a condition on `e`, the element with the focus, holds."""
        for _ in range(60):
            if await self.run(f"(e => Boolean({condition}))(document.activeElement)"):
                return
            await self.press("Tab")
        raise AssertionError(f"the keyboard does not reach it: {condition}")

    async def picture(self) -> bytes:
        """Return the page as a PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@contextmanager
def running_browser(folder: Path) -> Generator[Browser, None, None]:
    """Run a browser that keeps its files in a folder."""
    assert CHROMIUM is not None
    if subprocess.run([CHROMIUM, "--version"], capture_output=True).returncode:  # a stub that asks for its package
        pytest.skip(f"{CHROMIUM} does not run")
    to_browser, commands = os.pipe()
    replies, from_browser = os.pipe()
    options = [
        "--headless=new",
        "--no-sandbox",  # tests may run as root; no page but ours is opened
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-pipe",
        f"--user-data-dir={folder}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _EXEC, str(to_browser), str(from_browser), CHROMIUM, *options],
            pass_fds=(to_browser, from_browser),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(commands, replies)
    finally:
        os.close(commands)
        os.close(replies)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
