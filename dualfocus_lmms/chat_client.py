"""The client of OpenAI's protocol with limits, and its errors in our words.

A reply is read to the end within its time, to a size, and from the address that was given; and no password or
key of an address is in a message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as WaitError
from contextlib import contextmanager
from importlib import import_module
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import openai

from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.json_text import load_json
from dualfocus_lmms.text_output import excerpt

KEY = "OPENAI_API_KEY"
MOST_BYTES = 1 << 26  # of a reply, unpacked: 64 MiB
_HTTP: Any = import_module(
    openai.DefaultHttpxClient.__mro__[1].__module__.partition(".")[0]
)  # httpx or httpx2
_PACKED = ("content-encoding", "content-length", "transfer-encoding")


def connect(url: str, key: str | None, retries: int, seconds: float) -> openai.OpenAI:
    """A client of the server at `url`. retries: of a request that was refused (429), failed (5xx) or got no
    whole reply within `seconds`. UserError for a key that no request can carry."""
    if key and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise UserError(f"The key of {public(url)} holds blanks, or letters that are not ASCII: see {KEY}.")
    return openai.OpenAI(
        base_url=url,
        api_key=key or "none",  # the client insists on one, servers of one's own do not
        max_retries=retries,
        timeout=seconds,
        http_client=_Limited(seconds),
    )


class _Limited(openai.DefaultHttpxClient):
    """Reads a reply whole, at most MOST_BYTES and one of it, within `seconds` from the request to its last
    byte. Follows no redirect: one to another place would carry the questions there."""

    def __init__(self, seconds: float) -> None:
        super().__init__(timeout=seconds, follow_redirects=False)
        self._seconds = seconds

    def send(self, request: Any, **options: Any) -> Any:
        """The response with its body. What HTTP's library raises, ReadTimeout where the time is over."""
        reply: Future[Any] = Future()
        # A server that sends a byte now and then never runs into the library's own limits.
        Thread(target=self._send, args=(reply, request, options), daemon=True).start()
        try:
            return reply.result(self._seconds)
        except WaitError as error:
            raise _HTTP.ReadTimeout(_late(self._seconds), request=request) from error

    def _send(self, reply: Future[Any], request: Any, options: dict[str, Any]) -> None:
        try:
            reply.set_result(self._whole(request, options))
        except BaseException as error:  # raised where the reply is waited for
            reply.set_exception(error)

    def _whole(self, request: Any, options: dict[str, Any]) -> Any:
        until = time.monotonic() + self._seconds
        response = super().send(request, **{**options, "stream": True})
        body = bytearray()
        try:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    break
                if time.monotonic() > until:
                    raise _HTTP.ReadTimeout(_late(self._seconds), request=request)
        finally:
            response.close()
        headers = [pair for pair in response.headers.multi_items() if pair[0].lower() not in _PACKED]
        return _HTTP.Response(
            response.status_code,
            headers=headers,
            content=bytes(body[: MOST_BYTES + 1]),
            request=request,
            extensions=response.extensions,
        )


def _late(seconds: float) -> str:
    return f"no whole reply within {seconds:g} seconds (timeout)"


# --- addresses ---------------------------------------------------------------------------------------------


def check_url(url: str, name: str) -> None:
    """UserError for what is no address of a server; it shows no password and no key. name: of the option."""
    try:
        parts = urlsplit(url)
        correct = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, correct = urlsplit(""), False
    if not correct or any(letter.isspace() or not letter.isprintable() for letter in url):
        shown = repr(url) if "@" not in url and "?" not in url else "no address that can be read"
        raise UserError(f"{name} is {shown}: give a URL such as http://localhost:8000/v1.")
    if parts.query or parts.fragment:
        raise UserError(
            f"{name} {public(url)} is followed by a query (?...) or a fragment (#...), which no request can "
            f"keep: end it with /v1, and export a key as {KEY}."
        )


def has_password(url: str) -> bool:
    """Whether the URL holds the name of a user or a password."""
    return "@" in urlsplit(url).netloc


def public(url: str) -> str:
    """The URL without user, password and query, for messages and logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


# --- what comes back ---------------------------------------------------------------------------------------


@contextmanager
def server_errors(client: openai.OpenAI) -> Iterator[None]:
    """Errors of the client in our words: UserError where its server refuses, GenerationError where it fails
    or does not answer."""
    url = public(str(client.base_url))
    try:
        yield
    except openai.APIStatusError as error:
        code = error.status_code
        if 300 <= code < 400:
            target = error.response.headers.get("location", "")
            raise UserError(
                f"{url} answered {code}: it sends requests on to {excerpt(_place(target))}, and none is "
                "sent to an address that you did not give. If it is yours, give it as base_url."
            ) from error
        message = f"{url} answered {code}: {excerpt(error.message)}"
        if code < 500 and code != 429:
            raise UserError(f"{message}. Check base_url (it ends with /v1), model, api_key.") from error
        raise GenerationError(f"{message}. All retries failed: see the server's log.") from error
    except (openai.OpenAIError, _HTTP.HTTPError, _HTTP.InvalidURL, ValueError) as error:
        why = error.__cause__ or error
        reason = excerpt(str(why) or type(why).__name__)
        raise GenerationError(
            f"{url} gave no reply that can be read: {reason}. Does the server run?"
        ) from error


def _place(target: str) -> str:
    try:
        return public(target)
    except ValueError:
        return "an address that cannot be read"


def read_json(response: Any, url: str) -> dict[str, Any]:
    """The JSON object in the body of a response. GenerationError that tells what `url` returned instead."""
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    body: bytes = response.content
    if len(body) > MOST_BYTES:
        raise _no_object(url, f"more than {MOST_BYTES:,} bytes")
    if kind != "application/json" and not kind.endswith("+json"):
        raise _no_object(
            url, f"{kind or 'no content type'}: {excerpt(body[:200].decode(errors='replace'))!r}"
        )
    try:
        value = load_json(body)
    except ValueError as error:
        shown = excerpt(body[-100:].decode(errors="replace"))
        raise _no_object(url, f"broken JSON ({excerpt(error)}) that ends with {shown!r}") from error
    if not isinstance(value, dict):
        raise _no_object(url, f"JSON of another kind, {excerpt(value)!r}")
    problem = value.get("error") or (value.get("message") if value.get("object") == "error" else None)
    if problem:
        message = problem.get("message", problem) if isinstance(problem, dict) else problem
        raise GenerationError(f"{url} answered 200 with an error: {excerpt(message)}. See the server's log.")
    return value


def _no_object(url: str, came: str) -> GenerationError:
    return GenerationError(
        f"{url} replied with {came}. A JSON object of OpenAI's protocol is needed: check that base_url ends "
        "with /v1 and that no proxy answers in the server's place."
    )
