"""The page of `dualfocus app` in Chromium: a drawn scene is asked about, and nothing leaves this machine.

Needs gradio, which constraints.txt does not have: run it by hand in an environment with the extra [app].
"""

from __future__ import annotations

import socket
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from chromium import Browser, NavigatedError

from dualfocus_lmms.testing import FakeBackend, Reply

SCRIPT = {"macro": Reply("red", (-0.7,)), "locate": "[0.25, 0.25, 0.50, 0.75]", "micro": "blue"}
FIELDS = "[...document.querySelectorAll('textarea, input')].map(field => field.value)"


def wait_for(browser: Browser, script: str) -> Any:
    for _ in range(100):
        try:
            if value := browser.run(script):
                return value
        except NavigatedError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"never true: {script}")


def test_a_scene_is_asked_about_and_nothing_leaves_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("gradio")
    import uvicorn

    from dualfocus_lmms.cli.app import _gradio, served_app

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    served = served_app(_gradio(), FakeBackend(SCRIPT), "scripted", tmp_path)
    server = uvicorn.Server(uvicorn.Config(served, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    browser = Browser(tmp_path / "chromium")
    try:
        browser.call("Page.navigate", url=f"http://127.0.0.1:{port}/")
        wait_for(browser, "document.querySelector('tbody tr') !== null")
        browser.run("document.querySelector('tbody tr').click()")
        wait_for(browser, f"{FIELDS}.some(text => text.endsWith('?'))")
        time.sleep(1)
        browser.run("document.querySelector('.submit-button').click()")
        wait_for(browser, f"{FIELDS}.some(text => text.startsWith('blue - '))")
        assert {"red", "2.014", "blue", "1.105"} <= set(browser.run(FIELDS))
        asked = [url for url in browser.requests if url.startswith("http")]
        assert asked
        assert [url for url in asked if not url.startswith(f"http://127.0.0.1:{port}/")] == []
        assert browser.errors == []
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/", headers={"Host": "attacker.example"})
        assert connection.getresponse().status == 400
    finally:
        browser.close()
        server.should_exit = True
        thread.join(20)
