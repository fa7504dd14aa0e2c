"""`dualfocus view`: the report of a run that is still going, served on this machine's own address.

    dualfocus view runs/first

The report is the one of `build.report`, made anew when the traces grew; the page loads itself again then.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

from markupsafe import escape

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.results.report.build import Report, report

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")  # a page of another name that leads here is not answered
PAGE = "report.html"
VERSION = "/version"
IDLE_SHARE = 4  # times as long as a report took to make, no other is made: the run needs the processor
# The page itself allows no requests; the server allows the one for the version.
CLOSED, OPEN = "default-src 'none';", "default-src 'none'; connect-src 'self';"
RELOAD = """<script>
setInterval(async () => {
  const answer = await fetch("/version", { cache: "no-store" }).catch(() => null);
  if (answer?.ok && await answer.text() !== "%s") location.reload();
}, 2000);
</script>
"""
WAITING = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>:root {{ color-scheme: light dark; font: 1.1rem/1.5 system-ui, sans-serif }}
body {{ max-width: 40rem; margin: 20vh auto; padding: 0 1rem }} p {{ overflow-wrap: anywhere }}</style>
</head>
<body>
<h1>{title}</h1>
<p>{text}</p>
</body>
</html>
"""

Build = Callable[[Path], Report]


class LiveReport:
    """The newest report of a run's folder, in a temporary folder, and the page that stands in for it.

    build: writes the report into a folder. `version` changes with what is shown. `close` deletes it all.
    """

    def __init__(self, folder: Path, build: Build) -> None:
        self.version = 0
        self._folder, self._build = folder, build
        self._temporary = TemporaryDirectory(prefix="dualfocus-view-")
        self._lock = threading.Lock()
        self._built: Path | None = None
        self._seen: dict[Path, int] = {}
        self._page = _waiting("Waiting for traces", f"The folder {folder} holds no trace yet.")

    def refresh(self) -> str | None:
        """What there is to tell after a look at the folder; None where nothing grew since the last one."""
        seen = _sizes(self._folder)
        if seen == self._seen:
            return None
        self._seen = seen
        if not any(seen.values()):
            return None
        made = Path(self._temporary.name, str(self.version + 1))
        try:
            told = self._build(made).text().replace(f"{made / PAGE}: ", "", 1)
        except UserError as error:
            told = f"No report yet: {error}"
            if self._built is None:
                with self._lock:
                    self._page = _waiting("No report yet", str(error))
                    self.version += 1
            return told
        with self._lock:
            old, self._built = self._built, made
            self._page = (made / PAGE).read_text("utf-8")
            self.version += 1
        if old is not None:
            for path in old.iterdir():
                path.unlink()
        return told

    def page(self) -> bytes:
        """The page, which loads itself again when there is another version."""
        with self._lock:
            before, end, after = self._page.replace(CLOSED, OPEN, 1).rpartition("</body>")
            return f"{before}{RELOAD % self.version}{end}{after}".encode()

    def file(self, name: str) -> bytes | None:
        """A file of the report by its name; None where the report has none of that name."""
        with self._lock:
            if self._built is None or name not in {path.name for path in self._built.iterdir()}:
                return None
            return (self._built / name).read_bytes()

    def close(self) -> None:
        self._temporary.cleanup()


class Server(ThreadingHTTPServer):
    """Answers requests of this machine for one live report. `port` 0 is any free one."""

    daemon_threads = True

    def __init__(self, live: LiveReport, port: int = 0) -> None:
        self.live = live
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"Cannot listen on port {port}: {error}. Give another one with --port, or 0 for a free one."
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that left before its answer was complete is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in HOSTS:
            self.send_error(HTTPStatus.FORBIDDEN, "Only for this machine")
            return
        live, path = self.server.live, unquote(urlsplit(self.path).path)
        if path == VERSION:
            self._answer(str(live.version).encode(), "text/plain")
        elif path in ("/", f"/{PAGE}"):
            self._answer(live.page(), "text/html")
        elif (content := live.file(path.removeprefix("/"))) is not None:
            self._answer(content, guess_type(path)[0] or "application/octet-stream")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is for the run."""


def view(
    folder: str | Path,
    tell: Callable[[str], None],
    port: int = 0,
    every: float = 10,
    images: int = 400,
    traces: str | Path | None = None,
) -> None:
    """Serve the report of a run until Ctrl-C, made anew every `every` seconds at most.

    folder: see `runs.load_run`; it may be empty. tell: prints a line. UserError for a folder that does not
    exist and a port that is in use.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"No folder at {str(folder)!r}: give the --output_path of a run, made before it starts."
        )
    watched = folder if traces is None else Path(traces)
    live = LiveReport(watched, lambda out: report([folder], out, images, traces))
    try:
        with Server(live, port) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            tell(f"{server.url} shows {folder}. Ctrl-C ends it.")
            try:
                _watch(live, tell, every)
            finally:
                server.shutdown()
    except KeyboardInterrupt:
        tell("")
    finally:
        live.close()


def _watch(live: LiveReport, tell: Callable[[str], None], every: float) -> None:
    while True:
        started = time.monotonic()
        told = live.refresh()
        if told is not None:
            tell(f"{time.strftime('%H:%M:%S')} {told}")
        time.sleep(max(every, IDLE_SHARE * (time.monotonic() - started)))


def _sizes(folder: Path) -> dict[Path, int]:
    """The sizes of what a report is made of, as far as it grows while a run goes on."""
    found = [*folder.rglob("rank*.jsonl"), *folder.rglob("*_results.json")]
    return {path: path.stat().st_size for path in found}


def _waiting(title: str, text: str) -> str:
    return WAITING.format(title=escape(title), text=escape(text))
