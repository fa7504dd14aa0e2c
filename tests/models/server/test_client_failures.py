"""What fails between client and server: what is tried again, and whose mistake it is."""

from __future__ import annotations

import itertools
import time

import pytest
from server_questions import QUICK, ask

from dualfocus_lmms import Conversation, GenerationError, UserError

pytestmark = pytest.mark.seconds(5)


def test_a_server_that_ignores_the_guide_is_found_out(stub, backend):
    def talk(reply):
        choice = reply["choices"][0]
        choice["message"]["content"] = "over there"
        entries = choice["logprobs"]["content"]
        entries[:-1] = [entries[0] | {"token": "over there", "bytes": list(b"over there")}]
        choice["token_ids"] = [7] * len(entries)
        reply["usage"]["completion_tokens"] = len(entries)
        return reply

    stub.alter = talk
    with pytest.raises(GenerationError):
        ask(backend(guided_box=True))
    (trace,) = ask(backend())
    assert trace.fallback == "no_box"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_that_was_refused_or_failed_is_repeated(stub, backend, status):
    (expected,) = ask(backend())
    stub.bodies.clear()
    stub.fail = lambda number: (status, QUICK) if number <= 2 else None
    (trace,) = ask(backend(retries=2))
    assert trace.selection == expected.selection
    assert len(stub.bodies) == 3 + 2
    assert stub.bodies[0] == stub.bodies[2]


def test_pauses_between_tries_grow(stub, backend):
    times = []
    stub.fail = lambda number: (times.append(time.monotonic()), (500, {}))[1]
    with pytest.raises(GenerationError):
        ask(backend(retries=2))
    first, second = (after - before for before, after in itertools.pairwise(times))
    assert 0.3 < first < second


def test_a_failure_that_stays_ends_the_run_and_no_answer_is_made_up(stub, backend):
    stub.fail = lambda number: (500, QUICK)
    with pytest.raises(GenerationError, match="refused with 500"):
        ask(backend(retries=3))
    assert len(stub.bodies) == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_the_server_refuses_is_the_users_mistake_and_is_not_repeated(stub, backend, status):
    stub.fail = lambda number: (status, QUICK)
    with pytest.raises(UserError, match=f"refused with {status}"):
        ask(backend(retries=3))
    assert len(stub.bodies) == 1


def test_a_model_that_the_server_does_not_have_is_the_users_mistake(backend):
    with pytest.raises(UserError):
        ask(backend(model="huge"))


def test_a_server_that_is_gone_is_a_failure(stub, backend):
    stub.dies_after = 2
    with pytest.raises(GenerationError):
        ask(backend(retries=1), 4)


def test_pages_that_are_no_completion_are_a_failure(stub, backend):
    stub.alter = lambda reply: {"detail": "hello"}
    with pytest.raises(GenerationError):
        ask(backend())


def test_a_server_scores_no_given_text(backend):
    with pytest.raises(UserError):
        backend().score([Conversation().user("What?").assistant("That.")])
