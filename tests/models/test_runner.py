"""Batches, order, traces on the disk, and resuming, with a scripted model."""

import pytest
from PIL import Image

from dualfocus_lmms import GenerationError, Limits, Question, Settings, UserError, read_traces
from dualfocus_lmms.models.requests import Request
from dualfocus_lmms.models.runner import Runner
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.trace import TraceWriter

SETTINGS = Settings.of()


def requests(count, context="same", opened=None):
    def make(number):
        key = {"task": "t", "split": "s", "doc_id": number, "context": context}

        def question():
            if opened is not None:
                opened.append(number)
            return Question(
                str(number), Image.new("RGB", (20, 20)), f"Number {number}?", f"Number {number}?", key
            )

        return Request(key, Limits(8), question)

    return [make(number) for number in range(count)]


def parrot(fail_at=None):
    """Says the question's number; fails like a broken model at one of them."""

    def script(stage, conversation):
        if stage == "locate":
            return "[0.1, 0.1, 0.9, 0.9]"
        number = conversation.turns[0].text.split()[-1].rstrip("?")
        if fail_at is not None and int(number) == fail_at:
            raise GenerationError("not a number")
        return number

    return FakeBackend(script)


def macro_calls(backend):
    return [call for call in backend.calls if call.stage == "macro"]


def test_traces_come_in_the_order_of_the_requests_whatever_the_batch_size():
    for size in (1, 3, 50):
        backend = parrot()
        asked = requests(10)[::-1]
        traces = Runner(backend, SETTINGS, size).run(asked)
        assert [trace.selection.text for trace in traces] == [str(number) for number in range(9, -1, -1)]
        assert [len(call.conversations) for call in macro_calls(backend)] == {
            1: [1] * 10,
            3: [3, 3, 3, 1],
            50: [10],
        }[size]


def test_a_request_that_comes_twice_is_answered_once():
    backend = parrot()
    asked = requests(2)
    traces = Runner(backend, SETTINGS, 4).run([asked[0], asked[1], asked[0]])
    assert [trace.selection.text for trace in traces] == ["0", "1", "0"]
    assert sum(len(call.conversations) for call in macro_calls(backend)) == 2


def test_what_was_answered_before_a_failure_is_on_the_disk_and_is_not_answered_again(tmp_path):
    with pytest.raises(GenerationError):
        Runner(parrot(fail_at=7), SETTINGS, 2, TraceWriter(tmp_path)).run(requests(10))
    finished, damaged = read_traces(tmp_path)
    assert [trace.key["doc_id"] for trace in finished] == [0, 1, 2, 3, 4, 5]
    assert damaged == []
    backend, opened = parrot(), []
    resumed = Runner(backend, SETTINGS, 3, TraceWriter(tmp_path), finished).run(requests(10, opened=opened))
    assert [trace.selection.text for trace in resumed] == [str(number) for number in range(10)]
    assert sorted(opened) == [6, 7, 8, 9]
    assert sum(len(call.conversations) for call in macro_calls(backend)) == 4
    assert len(read_traces(tmp_path)[0]) == 10


def test_half_a_line_left_by_a_kill_is_answered_again(tmp_path):
    Runner(parrot(), SETTINGS, 2, TraceWriter(tmp_path)).run(requests(4))
    file = tmp_path / "rank0.jsonl"
    file.write_bytes(file.read_bytes()[:-25])
    finished, damaged = read_traces(tmp_path)
    assert (len(finished), len(damaged)) == (3, 1)
    backend = parrot()
    Runner(backend, SETTINGS, 2, TraceWriter(tmp_path), finished).run(requests(4))
    assert sum(len(call.conversations) for call in macro_calls(backend)) == 1
    assert sorted(trace.key["doc_id"] for trace in read_traces(tmp_path)[0]) == [0, 1, 2, 3]


def test_a_task_whose_prompts_changed_cannot_be_resumed():
    finished = Runner(parrot(), SETTINGS, 2).run(requests(2))
    with pytest.raises(UserError):
        Runner(parrot(), SETTINGS, 2, finished=finished).run(requests(2, context="changed"))


def test_a_picture_that_cannot_be_read_stops_the_run_after_the_batches_before_it(tmp_path):
    def unreadable():
        raise UserError("broken.jpg")

    asked = requests(6)
    asked[4] = Request(asked[4].key, asked[4].limits, unreadable)
    with pytest.raises(UserError):
        Runner(parrot(), SETTINGS, 2, TraceWriter(tmp_path)).run(asked)
    assert len(read_traces(tmp_path)[0]) == 4
