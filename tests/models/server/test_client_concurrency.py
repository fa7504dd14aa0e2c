"""Many questions at a time: how many are under way, what waits, what one failure does to the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from server_questions import QUICK, answered, questions

from dualfocus_lmms import Box, GenerationError, Settings, StopCriteria, UserError, answer_batch
from dualfocus_lmms.models.server.client import SharedClock, answer_each

pytestmark = pytest.mark.seconds(10)


@pytest.fixture
def about(sent) -> Callable[[dict[str, Any]], tuple[int, str]]:
    """The number of the question that a request is about, and its stage where a grounding gives the box."""

    def read(body: dict[str, Any]) -> tuple[int, str]:
        number = (sent(body)[0].width - 40) // 9
        return number, "macro" if len(body["messages"]) == 1 else "micro"

    return read


@pytest.mark.parametrize("concurrency", [1, 5])
def test_no_more_questions_are_under_way_than_allowed(stub, backend, concurrency):
    answered(backend(), questions(7), [StopCriteria(8)] * 7, Settings.of(), concurrency)
    assert stub.peak == concurrency


def test_a_second_look_does_not_wait_for_the_first_ones_of_others(stub, backend, about, engine):
    """Question 0 stays in its second look until 4 requests are open. The others are first looks at questions
    that can only have begun after all those between them came to their end."""
    together = {(0, "micro"), (5, "macro"), (6, "macro"), (7, "macro")}
    met = []

    def holds(body):
        if together <= {about(other) for other in stub.open}:
            met.append(len(stub.open))
        return about(body) in together and not met

    stub.holds = holds
    settings = Settings.of(grounding="center")
    served = answered(backend(), questions(8), [StopCriteria(8)] * 8, settings, concurrency=4)
    assert met[0] == stub.peak == 4
    local = answer_batch(engine("naive"), questions(8), [StopCriteria(8)] * 8, settings)
    assert [trace.micro.tokens for trace in served] == [trace.micro.tokens for trace in local]


@pytest.mark.parametrize(("status", "error"), [(400, UserError), (500, GenerationError)])
def test_a_question_that_fails_loses_none_that_is_under_way_and_lets_none_begin(
    stub, backend, about, status, error
):
    """4 fails in its second look, 0 has been in its own since the beginning, 5 and 6 are in their first."""
    under_way = {(0, "micro"), (5, "macro"), (6, "macro")}
    failed = []

    def fail(number):
        if about(stub.bodies[number - 1]) != (4, "micro"):
            return None
        failed.append(time.monotonic())
        return status, QUICK

    def holds(body):
        if about(body) == (4, "macro"):
            return not under_way <= {about(other) for other in stub.open}
        return about(body) in under_way and not (failed and time.monotonic() > failed[0] + 0.5)

    stub.fail, stub.holds = fail, holds
    settings = Settings.of(grounding="center")
    traces = answer_each(backend(), questions(20), [StopCriteria(8)] * 20, settings, concurrency=4)
    finished = []
    with pytest.raises(error, match=f"refused with {status}"):
        finished.extend(int(trace.question_id) for trace in traces)
    assert {about(body)[0] for body in stub.bodies} == set(range(7))
    assert sorted(finished) == [0, 1, 2, 3, 5, 6]


def test_who_stops_listening_stops_the_questions_that_have_not_begun(stub, backend, about):
    traces = answer_each(backend(), questions(20), [StopCriteria(8)] * 20, Settings.of(), concurrency=2)
    next(traces)
    traces.close()
    assert stub.open == []
    assert len({about(body)[0] for body in stub.bodies}) < 20


def test_a_grounder_gets_one_question_at_a_time(backend):
    busy, most = [], []

    def grounder(question):
        busy.append(question.id)
        most.append(len(busy))
        time.sleep(0.01)
        busy.remove(question.id)
        return Box(0.25, 0.25, 0.75, 0.75)

    settings = replace(Settings.of(grounding="center"), grounder=grounder)
    traces = answered(backend(), questions(6), [StopCriteria(4)] * 6, settings)
    assert all(trace.micro is not None for trace in traces)
    assert most == [1] * 6


def test_seconds_are_shared_among_what_runs_at_the_same_time():
    clock, started = SharedClock(), time.perf_counter()
    with clock.share() as first:
        time.sleep(0.02)
        with clock.share() as second:
            time.sleep(0.04)
    spent = time.perf_counter() - started
    assert 0.019 < second() < first()
    assert first() + second() == pytest.approx(spent, abs=0.01)
