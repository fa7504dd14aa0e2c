"""vLLM's chat endpoint over HTTP, answered by an engine of this project in a thread of this process.

What comes in is data URLs and text; what goes out is vLLM's wording: every token as text with its
log-probability, the closing one among them, the stop string in stop_reason, ids in token_ids.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from aiohttp import web
from PIL import Image

from dualfocus_lmms import Conversation, StopCriteria
from dualfocus_lmms.chat_client import connect
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.models.server.client import ServerBackend
from dualfocus_lmms.types import Prompt

MODEL = "tiny"

_PATIENCE = 1000  # times that a held request asks whether it is held, 10 seconds

Failure = Callable[[int], "tuple[int, dict[str, str]] | None"]  # the number of a request: status and headers


class StubServer:
    """with StubServer(engine) as server: ... server.url, server.bodies, server.peak

    bodies: every chat request in the order of arrival. keys: what came as authorization. open: the requests
    that are open; peak: most that were open at once. fail: which requests fail, and how. holds: which
    requests wait for others, asked again and again. alter: a last change to a reply. dies_after: how many
    replies it gives before it is gone: connections are cut, and nobody listens.
    """

    def __init__(self, engine: Any) -> None:
        self.port = 0
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.peak = 0
        self.answered = 0
        self.dies_after: int | None = None
        self.open: list[dict[str, Any]] = []
        self.fail: Failure = lambda number: None
        self.holds: Callable[[dict[str, Any]], bool] = lambda body: False
        self.alter: Callable[[dict[str, Any]], Any] = lambda reply: reply
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def revive(self) -> None:
        """Be there again after it was gone, at the same address."""
        self.dies_after = None
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(20)

    def __enter__(self) -> StubServer:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._busy = asyncio.Lock()
        runner = web.AppRunner(app)
        await runner.setup()
        self._site = web.TCPSite(runner, "127.0.0.1", self.port)
        await self._site.start()
        self.port = self._site._server.sockets[0].getsockname()[1]
        return runner

    async def _models(self, request: web.Request) -> web.Response:
        self.keys.add(request.headers.get("Authorization"))
        model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "vllm", "root": "/weights/tiny"}
        return web.json_response({"object": "list", "data": [model]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        failure = self.fail(len(self.bodies))
        if failure is not None:
            return _error(*failure)
        if body["model"] != MODEL:
            return _error(404, {})
        self.open.append(body)
        self.peak = max(self.peak, len(self.open))
        try:
            await asyncio.sleep(0.05)  # so that what is sent together is seen together
            for _ in range(_PATIENCE):
                if not self.holds(body):
                    break
                await asyncio.sleep(0.01)
            else:
                return _error(400, {})
            async with self._busy:
                if self.dies_after is not None and self.answered >= self.dies_after:
                    request.transport.abort()
                    await self._site.stop()
                    return web.Response()
                reply = await self._loop.run_in_executor(None, self._reply, body)
                self.answered += 1
            return web.json_response(self.alter(reply))
        finally:
            self.open = [other for other in self.open if other is not body]

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        conversation = _conversation(body["messages"])
        (answer,) = self._engine.generate(
            Prompt.batch("macro", [conversation], [StopCriteria(body["max_tokens"])])
        )
        tokens, ended = list(answer.tokens), answer.ended
        text, stop = self._until(tokens, body.get("stop", []))
        if stop is not None:
            ended = False
        end = [self._engine.tokenizer.eos_token_id] if ended else []
        logprobs = answer.logprobs[: len(tokens) + len(end)]
        listed = [
            {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}
            for piece, value in zip(self._pieces([*tokens, *end]), logprobs, strict=True)
        ]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": {"content": listed} if body.get("logprobs") else None,
            "finish_reason": "stop" if ended or stop is not None else "length",
            "stop_reason": stop,
            "token_ids": [*tokens, *end] if body.get("return_token_ids") else None,
        }
        prompt, spoken = 100, len(tokens) + ended
        usage = {"prompt_tokens": prompt, "completion_tokens": spoken, "total_tokens": prompt + spoken}
        return {
            "id": "1", "object": "chat.completion", "created": 0, "model": MODEL,
            "choices": [choice], "usage": usage,
        }  # fmt: skip

    def _until(self, tokens: list[int], stops: list[str]) -> tuple[str, str | None]:
        """The text, and the stop string that cuts it; then `tokens` ends with the one that completes it."""
        for length in range(1, len(tokens) + 1):
            text = self._engine.decode(tokens[:length])
            found = [(text.find(stop), stop) for stop in stops if stop in text]
            if found:
                del tokens[length:]
                return text[: min(found)[0]], min(found)[1]
        return self._engine.decode(tokens), None

    def _pieces(self, tokens: list[int]) -> list[str]:
        return [self._engine.tokenizer.decode([token]) for token in tokens]


@pytest.fixture
def served_engine(engine: Callable[[str], Any]) -> Any:
    """What answers behind the server: the reference engine on the tiny checkpoint."""
    return engine("naive")


@pytest.fixture
def stub(served_engine: Any) -> Iterator[StubServer]:
    with StubServer(served_engine) as server:
        yield server


@pytest.fixture
def client(stub: StubServer) -> Callable[..., openai.OpenAI]:
    """A client of it that tries once, unless it is told otherwise."""
    return lambda retries=0: connect(stub.url, "secret", retries, 60)


@pytest.fixture
def backend(client: Callable[..., Any]) -> Callable[..., ServerBackend]:
    def make(family: Any = LLAVA, model: str = "tiny", retries: int = 0, **options: Any) -> ServerBackend:
        return ServerBackend(client(retries), model, family, **options)

    return make


@pytest.fixture
def sent() -> Callable[[dict[str, Any]], list[Image.Image]]:
    """The images of a request, in order."""
    return lambda body: list(_conversation(body["messages"]).images)


def _conversation(messages: list[dict[str, Any]]) -> Conversation:
    conversation = Conversation()
    for message in messages:
        parts = message["content"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        if message["role"] == "assistant":
            conversation = conversation.assistant(text)
            continue
        kinds = [part["type"] for part in parts]
        assert kinds == sorted(kinds), "images come before the text"
        images = [_image(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        conversation = conversation.user(text, *images)
    return conversation


def _image(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def _error(status: int, headers: dict[str, str]) -> web.Response:
    said = {"message": f"refused with {status}", "type": "Error", "param": None, "code": status}
    return web.json_response({"error": said}, status=status, headers=headers)
