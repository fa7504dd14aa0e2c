"""A page in headless Chromium, and the faults that axe-core finds in it."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest


def chromium() -> str:
    """The command that starts Chromium; the test is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    command = os.environ.get("DUALFOCUS_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if command is None:
        pytest.skip("no Chromium found: install it, or name it in DUALFOCUS_CHROMIUM")
    return command


def axe_script() -> str:
    """The text of axe.min.js; the test is skipped where it is missing."""
    if named := os.environ.get("DUALFOCUS_AXE"):
        return Path(named).read_text(encoding="utf-8")
    package = find_spec("axe_playwright_python")  # its file is all that is used: playwright is not started
    if package is None or not package.submodule_search_locations:
        pytest.skip("no axe-core found: pip install '.[test]', or name axe.min.js in DUALFOCUS_AXE")
    return Path(package.submodule_search_locations[0], "axe.min.js").read_text(encoding="utf-8")


class NavigatedError(Exception):
    """The page that a script was sent to was replaced by another before the script was done."""


class Browser:
    """A page in headless Chromium, driven through its own debugging protocol.

    requests: every address that was asked for. errors: what scripts threw or the page refused.
    """

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._number = 0
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        places = ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(
            [chromium(), *options, *places], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._loop.run_until_complete(self._connect())
        except BaseException:
            self.close()
            raise

    async def _connect(self) -> None:
        said = self._folder / "DevToolsActivePort"
        for _ in range(600):
            if said.exists() and "\n" in said.read_text():
                break
            await asyncio.sleep(0.1)
        port = said.read_text().splitlines()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json") as answer:
            target = next(one for one in await answer.json() if one["type"] == "page")
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self._call(f"{domain}.enable")

    async def _call(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": values})
        while True:
            message = await self._socket.receive_json(timeout=120)
            if message.get("id") == self._number:
                said = message.get("error", {}).get("message", "")
                if "navigated" in said or "context was destroyed" in said:
                    raise NavigatedError(said)
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        values = message.get("params", {})
        if message["method"] == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif message["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(values["entry"]["text"])

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        return self._loop.run_until_complete(self._call(method, **values))

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(
        self, path: Path, width: int = 1280, height: int = 900, scheme: str = "light", medium: str = "screen"
    ) -> None:
        """Load a page and wait until its list of samples is drawn; requests and errors of the page before are
        forgotten, such as those of a report whose server is gone. medium: or "print"."""
        self.call("Page.navigate", url="about:blank")
        self.run("0")
        self.requests.clear()
        self.errors.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=medium, features=preferred)
        self._load("Page.navigate", url=path.resolve().as_uri())

    def reload(self) -> None:
        """Load the page again at the address it has, and wait until it is drawn."""
        self._load("Page.reload")

    def _load(self, method: str, **values: Any) -> None:
        """Ask for a page; a script that is running when the old one goes is asked again of the new one."""
        self.run("window.old = true")
        self.call(method, **values)
        ready = "document.readyState === 'complete' && document.querySelector('.detail') !== null"
        for _ in range(300):
            try:
                if self.run(f"location.protocol === 'file:' && !window.old && {ready}"):
                    return
            except NavigatedError:
                pass
            time.sleep(0.1)
        raise AssertionError("the page does not load")

    def press(self, key: str) -> None:
        """Press a key as a person does, wherever the focus is."""
        text = {"text": key} if len(key) == 1 else {}
        codes = {"ArrowDown": 40, "ArrowUp": 38, "End": 35, "Home": 36, "Escape": 27, "PageDown": 34}
        values = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        self.call("Input.dispatchKeyEvent", type="keyDown", **values, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """What is seen, or the whole page, as a PNG file."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    def faults(self) -> list[str]:
        """What axe-core calls serious or critical: the rule, the element and what to do."""
        self.run(f"if (!window.axe) {{ {axe_script()} }} null")
        return self.run(
            "axe.run({resultTypes: ['violations']}).then(({violations}) => violations"
            ".filter(({impact}) => ['serious', 'critical'].includes(impact)).flatMap(({id, nodes}) =>"
            " nodes.map(({html, failureSummary}) => `${id}: ${html}: ${failureSummary}`)))"
        )

    def close(self) -> None:
        if hasattr(self, "_session"):
            self._loop.run_until_complete(self._session.close())
        self._process.terminate()
        self._process.wait(30)
        self._loop.close()
