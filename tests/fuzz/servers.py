"""Faulty servers: a real one on this machine that sends what it is told, and random changes to valid replies.

python tests/fuzz/servers.py --count 20000 --seed 0

Every reply ends in an answer that its own tokens spell, or in one message: never in another error, and never
in a score of something else.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from dualfocus_lmms import Answer, Conversation, GenerationError, StopCriteria, UserError
from dualfocus_lmms.chat_client import connect
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.server.client import ServerBackend
from dualfocus_lmms.types import Prompt

STOPS = ("\n\n", "###")
LONGEST = 16  # tokens
JSON = "application/json"


@dataclass
class Sent:
    """What the server sends. drip: seconds between two pieces of a byte, of the head too with `slow_head`;
    for ever where `body` ends. length: the Content-Length, where it is not that of the body."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str | None = JSON
    length: int | None = None
    drip: float = 0.0
    slow_head: bool = False


class FaultyServer:
    """with FaultyServer() as server: server.sent = Sent(...); server.url. requests: the paths, in order."""

    def __init__(self) -> None:
        self.sent = Sent(b"")
        self.requests: list[str] = []
        self.stopped = Event()
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def do_GET(self) -> None:
                faulty.requests.append(self.path)
                faulty.send(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}/v1"

    def send(self, handler: Any) -> None:
        sent = self.sent
        try:
            if sent.slow_head:
                self._drip(handler, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000, sent.drip)
                return
            handler.send_response(sent.status)
            if sent.kind is not None:
                handler.send_header("Content-Type", sent.kind)
            for name, value in sent.headers.items():
                handler.send_header(name, value)
            length = len(sent.body) if sent.length is None else sent.length
            handler.send_header("Content-Length", str(length))
            handler.end_headers()
            if sent.drip:
                self._drip(handler, sent.body + b" " * 10_000, sent.drip)
            else:
                handler.wfile.write(sent.body)
            handler.close_connection = length != len(sent.body)
        except OSError:  # the client has gone
            handler.close_connection = True

    def _drip(self, handler: Any, data: bytes, pause: float) -> None:
        for place in range(len(data)):
            handler.wfile.write(data[place : place + 1])
            handler.wfile.flush()
            if self.stopped.wait(pause):
                return

    def backend(self, seconds: float = 30.0, retries: int = 0) -> ServerBackend:
        """A model on this server."""
        return ServerBackend(connect(self.url, "secret-key", retries, seconds), "m", LLAVA)

    def __enter__(self) -> FaultyServer:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()


# --- valid replies -----------------------------------------------------------------------------------------


def completion(
    pieces: list[str | tuple[str, list[int]]], text: str | None, finish: str = "stop", **extra: Any
) -> dict[str, Any]:
    """A reply as servers word it. A token is its text, or its text and its bytes."""
    pairs = [(piece, None) if isinstance(piece, str) else piece for piece in pieces]
    listed = [
        {"token": token, "logprob": -0.1 * (place + 1), "bytes": raw, "top_logprobs": []}
        for place, (token, raw) in enumerate(pairs)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "reasoning_content": None, "tool_calls": []},
        "logprobs": {"content": listed},
        "finish_reason": finish,
        **extra,
    }
    usage = {"prompt_tokens": 50, "completion_tokens": len(pieces), "total_tokens": 50 + len(pieces)}
    details = {"cached_tokens": 16}
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
        "usage": usage | {"prompt_tokens_details": details},
    }  # fmt: skip


# vLLM's (the stop reason, token ids), SGLang's, one that lists bytes of parts of characters, others.
VALID = (
    completion(["Yes", "</s>"], " Yes", stop_reason=None, token_ids=[7, 2]),
    completion(["a", "red", "car"], "a red car", "length", stop_reason=None, token_ids=[3, 4, 5]),
    completion(["Yes", ".", "\n", "\n"], "Yes.", stop_reason="\n\n", token_ids=[7, 8, 9, 9]),
    completion(["No", "<|im_end|>"], "No", matched_stop=151645),
    completion([("\\xe7", [231]), ("\\x8c\\xab", [140, 171]), "</s>"], "猫"),
    completion(["\ufffd", "\ufffd", "\ufffd", "</s>"], "猫", stop_reason=None),
    completion(["</s>"], None, matched_stop=2),
    completion(["blue", " ##", "#x"], "blue "),
)


# --- random changes ----------------------------------------------------------------------------------------

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**70, 0.5, -0.25, 1e308, math.nan, math.inf, -math.inf, -9999.0, "", " ",
    "x", "Yes", "\x1b[31m", "<b>", "\ud800", "\ufffd", [], {}, [None], [[]], {"a": 1}, [1, 2], "9" * 300,
)  # fmt: skip


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value, its own left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*here, key)
        yield from places(inner, (*here, key))


def changed(reply: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """A copy with one place changed: replaced, left out, doubled, swapped, renamed, or moved into a list."""
    reply = copy.deepcopy(reply)
    path = rng.choice(list(places(reply)))
    holder: Any = reply
    for key in path[:-1]:
        holder = holder[key]
    key, value = path[-1], holder[path[-1]]
    match rng.randrange(7):
        case 0 | 1:
            holder[key] = rng.choice(ODD)
        case 2:
            del holder[key]
        case 3 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(value))
        case 3:
            holder[f"{key}_"] = holder.pop(key)
        case 4 if isinstance(holder, list):
            other = rng.randrange(len(holder))
            holder[key], holder[other] = holder[other], holder[key]
        case 4:
            holder[key] = [value]
        case 5 if isinstance(value, str):
            letters = [*value, "z"]
            letters[rng.randrange(len(letters))] = rng.choice(["", "q", "Ω", "\ufffd", "\x00", "<|", "|>"])
            holder[key] = "".join(letters)
        case 5 if isinstance(value, int | float):
            holder[key] = value + rng.choice([-1, 1, 0.5, 1e9])
        case _:
            holder[key] = rng.choice([inner for inner in ODD if type(inner) is not type(value)])
    return reply


def damaged(body: bytes, rng: random.Random) -> bytes:
    """The bytes with a piece cut, changed or doubled."""
    place = rng.randrange(len(body))
    match rng.randrange(4):
        case 0:
            return body[:place]
        case 1:
            return body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :]
        case 2:
            return body[:place] + body[place + rng.randrange(1, 9) :]
        case _:
            return body[:place] + body[place : place + 9] + body[place:]


def random_reply(rng: random.Random) -> bytes:
    """The body of a valid reply with one to three changes."""
    reply = rng.choice(VALID)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        reply = changed(reply, rng)
    body = json.dumps(reply).encode()
    return damaged(body, rng) if rng.random() < 0.2 else body


# --- what must hold ----------------------------------------------------------------------------------------


def prompt() -> Prompt:
    return Prompt("macro", Conversation().user("What is it?"), StopCriteria(LONGEST, STOPS))


def wrong(answer: Answer, body: bytes) -> str | None:
    """Why an answer must not be scored, from the reply alone; None where it may."""
    choice = json.loads(body)["choices"][0]
    listed = choice["logprobs"]["content"]
    values = [entry["logprob"] for entry in listed[: len(answer.logprobs)]]
    if not all(-9999 < value <= 0 for value in answer.logprobs):
        return "no log-probability"
    if [min(value, 0) for value in values] != list(answer.logprobs):
        return "other log-probabilities"
    if not (choice["message"].get("content") or "").strip().startswith(answer.text):
        return "another text"
    tokens = [entry["token"] for entry in listed]
    if any("\ufffd" in token or entry.get("bytes") for token, entry in zip(tokens, listed, strict=True)):
        return None  # whose text is not that of its tokens one by one
    kept = "".join(token for token in tokens[: len(answer.tokens)] if not re.fullmatch(r"<.*>|\[.*\]", token))
    spelled, text = "".join(kept.split()), "".join(re.sub(r"<[^<>]*>|\[\w+\]", "", answer.text).split())
    return None if spelled.startswith(text) or text.startswith(spelled) else "another text than its tokens"


def fuzz(count: int, seed: int) -> Counter[str]:
    """How many of `count` random replies became answers and messages. AssertionError with any other."""
    rng, ends = random.Random(seed), Counter[str]()
    with FaultyServer() as server:
        backend = server.backend()
        for number in range(count):
            body = random_reply(rng)
            server.sent = Sent(body)
            try:
                (answer,) = backend.generate([prompt()])
            except (GenerationError, UserError) as error:
                said = str(error)
                assert server.url in said, (number, said)
                assert said.isprintable(), (number, said)
                assert len(said) < 1000, (number, said)
                ends["message"] += 1
            except Exception as error:
                raise AssertionError(f"reply {number} of seed {seed}: {error!r}\n{body!r}") from error
            else:
                why = wrong(answer, body)
                assert why is None, f"reply {number} of seed {seed}: {why}\n{body!r}\n{answer}"
                ends["answer"] += 1
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    ends = fuzz(arguments.count, arguments.seed)
    print(f"{ends.total()} replies, seed {arguments.seed}: {dict(ends)}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
