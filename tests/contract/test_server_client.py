"""The client of OpenAI's protocol, behind which our models on servers and the makers of distractors work."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import httpx
import pytest

LookUp = Callable[[str], Any]
Answer = Callable[[httpx.Request], httpx.Response]
URL = "http://localhost:1/v1"

CHOICE = {
    "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"},
    "logprobs": {"content": [{"token": "yes", "logprob": -0.5, "bytes": None, "top_logprobs": []}]},
    "stop_reason": 7, "token_ids": [11, 12],
}  # fmt: skip
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
REPLY = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [CHOICE],
    "usage": USAGE,
}


@pytest.fixture
def client(foreign: LookUp) -> Callable[..., Any]:
    """Makes a client whose server is a function."""

    def make(answer: Answer, retries: int = 0) -> Any:
        http = httpx.Client(transport=httpx.MockTransport(answer))
        return foreign("openai:OpenAI")(base_url=URL, api_key="none", max_retries=retries, http_client=http)

    return make


def asked(client: Any, **more: Any) -> Any:
    messages = [{"role": "user", "content": [{"type": "text", "text": "red?"}]}]
    return client.chat.completions.create(model="m", messages=messages, **more)


def replying(**changed: Any) -> Answer:
    return lambda request: httpx.Response(200, json={**REPLY, **changed})


def test_the_client_insists_on_a_key(foreign: LookUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of one's own need none: ours give "none" where there is none."""
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(foreign("openai:OpenAIError")):
        foreign("openai:OpenAI")(base_url=URL)


def test_fields_of_the_servers_own_go_into_the_body(client: Callable[..., Any]) -> None:
    """The server backend: `extra_body` switches repetition penalties off and asks for token ids."""
    bodies: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append((request.url.path, json.loads(request.content)))
        return httpx.Response(200, json=REPLY)

    extra = {"repetition_penalty": 1.0, "structured_outputs": {"regex": "a"}}
    asked(client(answer), max_tokens=2, temperature=0, logprobs=True, top_logprobs=0, extra_body=extra)
    ((path, body),) = bodies
    assert path == "/v1/chat/completions", "OpenAI(base_url=...)"
    assert body["messages"][0]["content"] == [{"type": "text", "text": "red?"}], "messages"
    given = {"max_tokens": 2, "temperature": 0, "logprobs": True, "top_logprobs": 0, **extra}
    assert {name: body.get(name) for name in given} == given, "extra_body"


def test_a_reply_comes_as_it_was_sent(client: Callable[..., Any]) -> None:
    """The reader of replies checks the body itself: the client's own types check nothing."""
    messages = [{"role": "user", "content": "red?"}]
    asking = client(replying()).chat.completions.with_raw_response
    response = asking.create(model="m", messages=messages).http_response
    assert json.loads(response.content) == REPLY, "with_raw_response.http_response.content"
    assert response.headers["Content-Type"] == "application/json", "http_response.headers"
    listed = {"object": "list", "data": [{"id": "m", "root": "w"}]}
    models = client(lambda _: httpx.Response(200, json=listed)).models.with_raw_response
    assert json.loads(models.list().http_response.content) == listed, "models.with_raw_response.list"


def test_the_clients_own_http_can_be_limited(foreign: LookUp) -> None:
    """`chat_client` subclasses it, and finds the library that it stands on: httpx, or httpx2 from 3.x."""
    kind = foreign("openai:DefaultHttpxClient")
    library = import_module(kind.__mro__[1].__module__.partition(".")[0])
    assert issubclass(kind, library.Client), "DefaultHttpxClient"
    assert issubclass(library.ReadTimeout, library.HTTPError), "ReadTimeout"
    assert kind(timeout=1.0, follow_redirects=False).follow_redirects is False, "follow_redirects"
    made = library.Response(200, headers=[("a", "b")], content=b"c", request=library.Request("GET", URL))
    assert (made.content, made.headers["a"]) == (b"c", "b"), "Response"


@pytest.mark.parametrize("code", [429, 500])
def test_a_request_is_repeated_by_the_client(client: Callable[..., Any], code: int) -> None:
    """The server backend leaves repeating to it: refused and failed requests are asked again."""
    codes = [code, 200]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(codes.pop(0), json=REPLY, headers={"retry-after-ms": "1"})

    assert asked(client(answer, retries=1)).choices[0].message.content == "yes", "OpenAI(max_retries=...)"


@pytest.mark.parametrize(
    ("code", "kind"), [(400, "APIStatusError"), (401, "AuthenticationError"), (404, "NotFoundError")]
)
def test_a_refusal_has_a_code_and_words(
    foreign: LookUp, client: Callable[..., Any], code: int, kind: str
) -> None:
    """The server backend and the makers of distractors: below 500 it is the user's mistake."""
    with pytest.raises(foreign(f"openai:{kind}")) as caught:
        asked(client(lambda _: httpx.Response(code, json={"error": {"message": "no such thing"}})))
    assert caught.value.status_code == code, f"{kind}.status_code"
    assert "no such thing" in caught.value.message, f"{kind}.message"
    assert isinstance(caught.value, foreign("openai:APIStatusError")), kind


def test_no_connection_is_an_error_of_the_client_with_its_cause(
    foreign: LookUp, client: Callable[..., Any]
) -> None:
    """The server backend shows the cause, which says what is wrong with the address."""

    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(foreign("openai:APIError")) as caught:
        asked(client(refuse))
    assert "refused" in str(caught.value.__cause__), "APIConnectionError.__cause__"


def test_a_body_that_is_no_json_is_one_of_two_errors(foreign: LookUp, client: Callable[..., Any]) -> None:
    """The server backend catches both."""
    broken = httpx.Response(200, content=b"{", headers={"content-type": "application/json"})
    with pytest.raises((foreign("openai:APIError"), json.JSONDecodeError)):
        asked(client(lambda _: broken))


def test_the_address_is_kept(client: Callable[..., Any]) -> None:
    """Messages name it."""
    assert str(client(replying()).base_url).startswith(URL), "OpenAI.base_url"
