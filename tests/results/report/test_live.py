"""The report of a run that is going: what is served to whom, and when it is made anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.results.report import live, page
from dualfocus_lmms.results.report.build import Report
from dualfocus_lmms.results.report.live import CLOSED, OPEN, LiveReport, Server, view

HTML = f'<meta http-equiv="Content-Security-Policy" content="{CLOSED} script-src \'unsafe-inline\'">'


class Run:
    """A run's folder, its live report and the server; `made` counts the reports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.problem = folder, 0, ""
        self.live = LiveReport(folder, self._build)
        self.server = Server(self.live)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def _build(self, out: Path) -> Report:
        if self.problem:
            raise UserError(self.problem)
        self.made += 1
        out.mkdir()
        (out / "report.html").write_text(f"{HTML}<body><p class='detail'>report {self.made}</p></body>")
        (out / "samples.csv").write_text("doc_id\n0\n")
        return Report(out, self.made, 0)

    def answer(self, text: str = "{}\n") -> None:
        with (self.folder / "rank0.jsonl").open("a") as file:
            file.write(text)

    def get(self, path: str, host: str | None = None) -> tuple[int, str]:
        port = self.server.server_address[1]
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer.status, content


@pytest.fixture
def going(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    yield run
    run.server.shutdown()
    run.server.server_close()
    run.live.close()


def test_a_report_is_made_when_traces_grew_and_only_then(going: Run):
    assert going.live.refresh() is None
    status, text = going.get("/")
    assert (status, "Waiting for traces" in text, str(going.folder) in text) == (200, True, True)
    going.answer("")
    assert going.live.refresh() is None
    seen = []
    for _ in range(2):
        going.answer()
        told = [going.live.refresh(), going.live.refresh()]
        seen.append((going.made, told[1], going.get("/version"), f"report {going.made}" in going.get("/")[1]))
    assert seen == [(1, None, (200, "1"), True), (2, None, (200, "2"), True)]


def test_a_report_that_cannot_be_made_says_why_until_it_can(going: Run):
    going.problem = "The questions <are> elsewhere."
    going.answer()
    assert "elsewhere" in str(going.live.refresh())
    assert "The questions &lt;are&gt; elsewhere." in going.get("/")[1]
    going.problem = ""
    going.answer()
    going.live.refresh()
    assert ("report 1" in going.get("/")[1], going.get("/version")) == (True, (200, "2"))
    going.problem = "Damaged."
    going.answer()
    assert "Damaged." in str(going.live.refresh())
    assert ("report 1" in going.get("/")[1], going.get("/version")) == (True, (200, "2"))


def test_only_the_files_of_the_report_are_served(going: Run):
    going.answer()
    going.live.refresh()
    (going.folder / "secret.txt").write_text("secret")
    assert going.get("/samples.csv") == (200, "doc_id\n0\n")
    outside = (f"/..{going.folder}/secret.txt", "/../secret.txt", "/%2e%2e/secret.txt", "/secret.txt", "/.")
    assert [going.get(path)[0] for path in outside] == [404] * len(outside)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9000", 200),
        ("127.0.0.1", 200),
        ("attacker.example", 403),
        ("127.0.0.1.attacker.example:80", 403),
        ("127.0.0.1@attacker.example", 403),
    ],
)
def test_another_name_that_leads_here_is_refused(going: Run, host: str, status: int):
    assert [going.get(path, host)[0] for path in ("/", "/version")] == [status] * 2


def test_the_page_may_ask_for_its_version_and_for_nothing_else(going: Run):
    going.answer()
    going.live.refresh()
    assert OPEN in going.get("/")[1]
    assert CLOSED in (page.FOLDER / "report.html").read_text("utf-8")  # what the server replaces


def test_the_page_follows_the_traces_and_keeps_its_address(going: Run, browser: Any):
    going.answer()
    going.live.refresh()
    browser.call("Page.navigate", url=f"{going.server.url}#sample-3")
    wait_for(browser, "report 1")
    going.answer()
    going.live.refresh()
    wait_for(browser, "report 2")
    assert browser.run("location.hash") == "#sample-3"
    assert browser.errors == []


def wait_for(browser: Any, text: str) -> None:
    """Until the page shows a text; while it loads, a script of the old one fails."""
    for _ in range(100):
        try:
            if text in browser.run("document.body?.innerText ?? ''"):
                return
        except Exception as error:
            if type(error).__name__ != "NavigatedError":
                raise
        time.sleep(0.1)
    raise AssertionError(f"the page never showed {text!r}")


def test_ctrl_c_ends_it_quietly_and_deletes_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    made: list[Path] = []

    def make(folders: Any, out: Path, images: int, traces: Any) -> Report:
        made.append(out)
        assert (folders, images, traces) == ([tmp_path], 7, None)
        out.mkdir()
        (out / "report.html").write_text("<body></body>")
        return Report(out, 20, 0, ("run: 20 of 60",))

    def interrupt(seconds: float) -> None:
        assert seconds >= 10
        raise KeyboardInterrupt

    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "rank0.jsonl").write_text("{}\n")
    monkeypatch.setattr(live, "report", make)
    monkeypatch.setattr(time, "sleep", interrupt)
    view(tmp_path, told.append, images=7)
    assert ["http://127.0.0.1:" in told[0], "20 samples" in told[1], "20 of 60" in told[1]] == [True] * 3
    assert told[2:] == [""]
    assert [out.parent.exists() for out in made] == [False]


def test_a_folder_and_a_port_that_cannot_be_used_are_user_errors(going: Run, tmp_path: Path):
    with pytest.raises(UserError, match="missing"):
        view(tmp_path / "missing", print)
    with pytest.raises(UserError, match=str(going.server.server_address[1])):
        view(tmp_path, print, port=int(going.server.server_address[1]))
