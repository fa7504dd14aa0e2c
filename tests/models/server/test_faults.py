"""A server that does everything wrong, over HTTP: each fault is one message, and nothing of it is scored."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fuzz import servers
from fuzz.servers import VALID, FaultyServer, Sent, completion, prompt

from dualfocus_lmms import GenerationError, UserError, chat_client
from dualfocus_lmms.chat_client import check_url, connect, public
from dualfocus_lmms.models.server.client import ServerBackend
from dualfocus_lmms.models.server.host import served
from dualfocus_lmms.models.server.options import ServerOptions
from dualfocus_lmms.models.server.spelling import Piece, begins, spells, tail

pytestmark = pytest.mark.seconds(40)

YES = VALID[0]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        yield running


@pytest.fixture
def backend(server: FaultyServer) -> ServerBackend:
    return server.backend()


def refused(server: FaultyServer, backend: ServerBackend, error: type[Exception] = GenerationError) -> str:
    """The message in which a request ends."""
    with pytest.raises(error) as caught:
        backend.generate([prompt()])
    message = str(caught.value)
    assert server.url in message
    assert "secret-key" not in message
    assert message.isprintable()
    return message


def changed(**values: Any) -> dict[str, Any]:
    """A valid reply whose one choice has other entries."""
    return YES | {"choices": [YES["choices"][0] | values]}


def listing(*entries: Any) -> dict[str, Any]:
    return {"logprobs": {"content": list(entries)}}


TOKEN, END = YES["choices"][0]["logprobs"]["content"]


def test_valid_replies_are_answers(server, backend):
    texts = []
    for reply in VALID:
        server.sent = Sent(json.dumps(reply).encode())
        (answer,) = backend.generate([prompt()])
        texts.append((answer.text, len(answer.tokens), answer.ended))
    assert texts == [
        ("Yes", 1, True),
        ("a red car", 3, False),
        ("Yes.", 2, False),
        ("No", 1, True),
        ("猫", 2, True),
        ("猫", 3, True),
        ("", 0, True),
        ("blue", 1, False),
    ]


FAULTS: dict[str, Any] = {
    "null with tokens": changed(message={"content": None}),
    "text of other tokens": changed(message={"content": "No"}),
    "text with more": changed(message={"content": " Yes, sir"}),
    "text with less": changed(message={"content": "Y"}),
    "reasoning listed": completion(["Think", "ing", "No", "</s>"], "No"),
    "reasoning told": changed(message={"content": "Yes", "reasoning_content": "Thinking"}),
    "ids as tokens": completion(["token_id:7", "token_id:2"], "Yes"),
    "closing token in the text": completion(["Yes", "</s>"], "Yes</s>"),
    "above 0": changed(**listing(TOKEN | {"logprob": 0.5}, END)),
    "nan": changed(**listing(TOKEN | {"logprob": math.nan}, END)),
    "minus infinity": changed(**listing(TOKEN | {"logprob": -math.inf}, END)),
    "missing value": changed(**listing(TOKEN | {"logprob": -9999.0}, END)),
    "null value": changed(**listing(TOKEN | {"logprob": None}, END)),
    "text as value": changed(**listing(TOKEN | {"logprob": "-0.1"}, END)),
    "true as value": changed(**listing(TOKEN | {"logprob": True}, END)),
    "huge value": changed(**listing(TOKEN | {"logprob": 10**400}, END)),
    "doubled token": changed(**listing(TOKEN, TOKEN, END)),
    "token left out": changed(**listing(END)),
    "no token": changed(**listing()),
    "entry of another type": changed(**listing("Yes", END)),
    "bytes of another type": changed(**listing(TOKEN | {"bytes": [300]}, END)),
    "bytes of another text": changed(**listing(TOKEN | {"bytes": [78, 111]}, END)),
    "more tokens than asked for": completion(["a"] * 17, "a" * 17, "length"),
    "no log-probabilities": changed(logprobs=None),
    "log-probabilities of another type": changed(logprobs=[1]),
    "message of another type": changed(message="Yes"),
    "text of another type": changed(message={"content": ["Yes"]}),
    "half a character": changed(message={"content": "Yes\ud800"}),
    "no finish": changed(finish_reason=None),
    "broken off": changed(finish_reason="content_filter"),
    "unknown stop string": changed(stop_reason="es"),
    "stop of another type": changed(stop_reason=[1]),
    "ids of another type": changed(token_ids=["7", "2"]),
    "too few ids": changed(token_ids=[7]),
    "no usage": {name: value for name, value in YES.items() if name != "usage"},
    "usage null": YES | {"usage": None},
    "usage of another type": YES | {"usage": {"prompt_tokens": "50", "completion_tokens": 2}},
    "usage below 0": YES | {"usage": {"prompt_tokens": -50, "completion_tokens": 2}},
    "cached more than sent": YES | {"usage": YES["usage"] | {"prompt_tokens_details": {"cached_tokens": 51}}},
    "usage of more tokens": YES | {"usage": {"prompt_tokens": 50, "completion_tokens": 9}},
    "no choice": YES | {"choices": []},
    "two choices": YES | {"choices": YES["choices"] * 2},
    "choices of another type": YES | {"choices": YES["choices"][0]},
    "choice null": YES | {"choices": [None]},
    "an error": {"error": {"message": "out of memory", "code": 500}},
    "an error of old": {"object": "error", "message": "out of memory"},
    "an error as text": {"error": "out of memory"},
    "empty": {},
    "a list": [YES],
    "a text": "Yes",
    "null": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reply_of_another_form_is_one_message(server, backend, fault):
    server.sent = Sent(json.dumps(FAULTS[fault]).encode())
    message = refused(server, backend)
    assert len(message) < 700
    assert ("out of memory" in message) is fault.startswith("an error")


BODY = json.dumps(YES).encode()
TRANSFERS = {
    "nothing": Sent(b""),
    "truncated JSON": Sent(BODY[:-20]),
    "truncated body": Sent(BODY[:-20], length=len(BODY)),
    "nested too deep": Sent(b"[" * 100_000),
    "too long a number": Sent(b'{"choices": ' + b"9" * 5000 + b"}"),
    "no UTF-8": Sent(b'{"choices": "\xff\xfe"}'),
    "a page": Sent(b"<html><script>alert(1)</script>", kind="text/html"),
    "a page as JSON": Sent(b"<html>"),
    "JSON as a page": Sent(BODY, kind="text/html"),
    "no type": Sent(BODY, kind=None),
    "no gzip": Sent(b"garbage", headers={"Content-Encoding": "gzip"}),
    "half of gzip": Sent(gzip.compress(BODY)[:40], headers={"Content-Encoding": "gzip"}),
    "escapes": Sent(b'{"error": "\\u001b[31mred \\u202e"}'),
    "500 and a page": Sent(b"<html>" + b"x" * 100_000, status=500, kind="text/html"),
    "429": Sent(b"{}", status=429),
    "204": Sent(b"", status=204),
}


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_what_arrives_damaged_is_one_message(server, backend, transfer):
    server.sent = TRANSFERS[transfer]
    assert len(refused(server, backend)) < 900


def test_what_is_packed_in_a_common_way_is_read(server, backend):
    server.sent = Sent(gzip.compress(BODY), headers={"Content-Encoding": "gzip"})
    (answer,) = backend.generate([prompt()])
    assert answer.text == "Yes"


def test_a_reply_has_a_largest_size_also_unpacked(server, backend, monkeypatch):
    monkeypatch.setattr(chat_client, "MOST_BYTES", 1 << 16)
    for size, headers in ((1 << 17, {}), (1 << 24, {"Content-Encoding": "gzip"})):
        body = b'{"a": "' + b"x" * size + b'"}'
        server.sent = Sent(gzip.compress(body) if headers else body, headers=headers)
        assert "65,536" in refused(server, backend)


@pytest.mark.parametrize("slow_head", [False, True])
def test_a_server_that_drips_is_given_up_in_time(server, slow_head):
    server.sent = Sent(BODY, drip=0.05, slow_head=slow_head)
    began = time.monotonic()
    message = refused(server, server.backend(seconds=0.5))
    assert time.monotonic() - began < 2
    assert "0.5 seconds" in message


def test_a_reply_that_is_late_is_asked_for_again(server):
    server.sent = Sent(BODY, drip=0.05)
    refused(server, server.backend(seconds=0.3, retries=1))
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(server, backend, status):
    with FaultyServer() as other:
        location = f"http://user:s3cr3t@{other.address}/v1/chat/completions?api_key=k"
        server.sent = Sent(b"", status=status, headers={"Location": location})
        message = refused(server, backend, UserError)
        assert other.requests == []
    assert other.address in message
    assert "s3cr3t" not in message
    assert "api_key=k" not in message


@pytest.mark.parametrize("location", ["http://[::1", "//", "\x00", "http://h:99999/"])
def test_a_redirect_to_nowhere_is_one_message(server, backend, location):
    server.sent = Sent(b"", status=302, headers={"Location": location})
    refused(server, backend, Exception)


# --- the list of models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        Sent(b"<html>a page</html>", kind="text/html"),
        Sent(b"<html>a page</html>"),
        Sent(b"{}"),
        Sent(b'{"data": null}'),
        Sent(b'{"data": {"id": "m"}}'),
        Sent(b'{"data": [null]}'),
        Sent(b'{"data": [{"id": 1}]}'),
        Sent(b'{"data": [{"id": "m", "root": [1]}]}'),
        Sent(b'{"data": [{"id": "\\u001b[31m"}]}'),
        Sent(b'{"data": []}'),
    ],
)
def test_what_is_no_list_of_models_is_the_users_mistake(server, sent):
    server.sent = sent
    with pytest.raises(UserError) as caught:
        served(connect(server.url, None, 0, 5), "m")
    assert str(caught.value).isprintable()


def test_a_list_of_models_tells_their_weights(server):
    server.sent = Sent(json.dumps({"data": [{"id": "m", "root": "/w"}, {"id": "n"}]}).encode())
    client = connect(server.url, None, 0, 5)
    assert (served(client, "m"), served(client, "n")) == ("/w", None)


# --- addresses and keys ------------------------------------------------------------------------------------


def test_a_password_in_the_address_is_in_no_message(server):
    url = f"http://user:s3cr3t@{server.address}/v1"
    backend = ServerBackend(connect(url, None, 0, 5), "m", servers.LLAVA)
    server.sent = Sent(BODY)
    assert backend.generate([prompt()])[0].text == "Yes"
    for sent in (Sent(b"{}"), Sent(b"", status=401), Sent(b"", status=500), Sent(b"x", length=99)):
        server.sent = sent
        with pytest.raises((GenerationError, UserError)) as caught:
            backend.generate([prompt()])
        assert server.url in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


def test_a_password_among_the_model_arguments_is_refused_and_taken_from_the_environment(monkeypatch):
    given = {"model": "m", "family": "llava"}
    with pytest.raises(UserError) as caught:
        ServerOptions.of(given | {"base_url": "http://user:s3cr3t@h/v1"})
    assert "s3cr3t" not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:s3cr3t@h/v1")
    options = ServerOptions.of(given)
    assert options.base_url == "http://user:s3cr3t@h/v1"
    assert "s3cr3t" not in repr(options)
    assert "s3cr3t" not in repr(options.identity())
    assert ServerOptions.of(given | {"base_url": "http://other/v1"}).base_url == "http://other/v1"


@pytest.mark.parametrize(
    "url", ["", "h:8000", "ftp://h/v1", "http://", "http://[::1", "http://h:x/v1", "http://h/v1?key=s3cr3t",
            "http://h/v1#s3cr3t", "user:s3cr3t@h", "http://user:s3cr3t@h:x/", "http://h/\x1b[31m"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UserError) as caught:
        check_url(url, "base_url")
    assert "s3cr3t" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_address_is_shown_without_what_is_secret():
    assert public("https://user:s3cr3t@host:8000/v1/?key=k#f") == "https://host:8000/v1"


@pytest.mark.parametrize("key", ["two words\n", "schlüssel", "a\r\nX-Header: b"])
def test_a_key_that_no_request_can_carry_is_refused(key):
    with pytest.raises(UserError) as caught:
        connect("http://h/v1", key, 0, 5)
    assert key not in str(caught.value)


# --- spelling ----------------------------------------------------------------------------------------------


def pieces(*texts: str) -> list[Piece]:
    return [Piece.of(text) for text in texts]


@pytest.mark.parametrize(
    ("tokens", "text", "same"),
    [
        (("Yes", "sir"), " Yes sir", True),
        (("<s>", "Yes", "<pad>"), "Yes", True),
        (("<box>", "(1,2)", "</box>"), "<box>(1,2)</box>", True),
        (("<0xE7>", "<0x8C>", "<0xAB>"), "猫", True),
        (("a", "\ufffd", "\ufffd"), "a", True),  # held back
        (("\ufffd", "a"), "éa", True),
        (("\ufffd",), "éé", False),
        (("Yes",), "", False),
        (("Yes",), "Yes!", False),
        (("Yes", "Yes"), "Yes", False),
        (("yes",), "Yes", False),
    ],
)
def test_tokens_spell_a_text(tokens, text, same):
    assert spells(pieces(*tokens), text) is same


def test_a_text_may_go_on_into_the_token_of_a_stop_string():
    assert begins(pieces("Yes"), pieces(".\n\n"), "Yes.")
    assert not begins(pieces("Yes"), pieces(".\n\n"), "Yes!")
    assert (tail(pieces("a", "#", "##"), "###"), tail(pieces("a"), "###")) == (2, None)


# --- by chance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_random_changes_of_replies_end_in_an_answer_of_their_own_or_a_message(seed):
    ends = servers.fuzz(1000, seed)
    assert ends.total() == 1000
    assert ends["message"] > 500
    assert ends["answer"] > 100
