"""Batches, order, memory that runs out, traces on the disk, and resuming, with a scripted model."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from dualfocus_lmms import Box, GenerationError, Question, Settings, StopCriteria, UserError, read_traces
from dualfocus_lmms.errors import Interrupted
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.testing import FakeBackend, Reply
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

        return Request(key, StopCriteria(8), question)

    return [make(number) for number in range(count)]


def echo_backend(fail_at=None):
    """Replies with the question's number; fails like a broken model at one of them."""

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


def test_traces_have_the_order_of_the_requests_at_any_batch_size():
    for size in (1, 3, 50):
        backend = echo_backend()
        request_list = requests(10)[::-1]
        traces = Runner(backend, SETTINGS, size).run(request_list)
        assert [trace.selection.text for trace in traces] == [str(number) for number in range(9, -1, -1)]
        assert [len(call.conversations) for call in macro_calls(backend)] == {
            1: [1] * 10,
            3: [3, 3, 3, 1],
            50: [10],
        }[size]


def test_a_request_that_comes_twice_is_answered_once():
    backend = echo_backend()
    request_list = requests(2)
    traces = Runner(backend, SETTINGS, 4).run([request_list[0], request_list[1], request_list[0]])
    assert [trace.selection.text for trace in traces] == ["0", "1", "0"]
    assert sum(len(call.conversations) for call in macro_calls(backend)) == 2


def test_answers_before_a_failure_are_on_disk_and_are_not_generated_again(tmp_path):
    with pytest.raises(GenerationError):
        Runner(echo_backend(fail_at=7), SETTINGS, 2, TraceWriter(tmp_path)).run(requests(10))
    finished, damaged = read_traces(tmp_path)
    assert [trace.key["doc_id"] for trace in finished] == [0, 1, 2, 3, 4, 5]
    assert damaged == []
    backend, opened = echo_backend(), []
    resumed = Runner(backend, SETTINGS, 3, TraceWriter(tmp_path), finished).run(requests(10, opened=opened))
    assert [trace.selection.text for trace in resumed] == [str(number) for number in range(10)]
    assert sorted(opened) == [6, 7, 8, 9]
    assert sum(len(call.conversations) for call in macro_calls(backend)) == 4
    assert len(read_traces(tmp_path)[0]) == 10


def test_an_incomplete_last_line_is_answered_again(tmp_path):
    Runner(echo_backend(), SETTINGS, 2, TraceWriter(tmp_path)).run(requests(4))
    file = tmp_path / "rank0.jsonl"
    file.write_bytes(file.read_bytes()[:-25])
    finished, damaged = read_traces(tmp_path)
    assert (len(finished), len(damaged)) == (3, 1)
    backend = echo_backend()
    Runner(backend, SETTINGS, 2, TraceWriter(tmp_path), finished).run(requests(4))
    assert sum(len(call.conversations) for call in macro_calls(backend)) == 1
    assert sorted(trace.key["doc_id"] for trace in read_traces(tmp_path)[0]) == [0, 1, 2, 3]


def test_a_task_whose_prompts_changed_cannot_be_resumed():
    finished = Runner(echo_backend(), SETTINGS, 2).run(requests(2))
    with pytest.raises(UserError):
        Runner(echo_backend(), SETTINGS, 2, finished=finished).run(requests(2, context="changed"))


def test_an_image_that_cannot_be_read_stops_the_run_after_the_batches_before_it(tmp_path):
    def unreadable():
        raise UserError("broken.jpg")

    request_list = requests(6)
    request_list[4] = Request(request_list[4].key, request_list[4].limits, unreadable)
    with pytest.raises(UserError):
        Runner(echo_backend(), SETTINGS, 2, TraceWriter(tmp_path)).run(request_list)
    assert len(read_traces(tmp_path)[0]) == 4


class SmallBackend(FakeBackend):
    """Has memory for `room` conversations at a time in one stage."""

    def __init__(self, script, room, stage="macro", error=None):
        super().__init__(script)
        self.room, self.stage = room, stage
        self.error = torch.OutOfMemoryError("full") if error is None else error

    def generate(self, prompts):
        answers = super().generate(prompts)
        if sum(prompt.stage == self.stage for prompt in prompts) > self.room:
            raise self.error
        return answers


def small(room, **about):
    return SmallBackend(echo_backend()._script, room, **about)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("stage", ["macro", "locate", "micro"])
def test_a_batch_beyond_memory_is_divided_and_later_ones_are_smaller(tmp_path, error, stage):
    backend = small(3, stage=stage, error=error)
    runner = Runner(backend, SETTINGS, 8, TraceWriter(tmp_path))
    traces = runner.run(requests(10))
    assert [trace.selection.text for trace in traces] == [str(number) for number in range(10)]
    assert [len(call.conversations) for call in macro_calls(backend)] == [8, 4, 2, 2, 2, 2, 2]
    assert backend.forgotten >= 7  # a failed batch keeps nothing
    written, damaged = read_traces(tmp_path)
    assert [trace.key["doc_id"] for trace in written] == list(range(10))
    assert damaged == []
    assert len((tmp_path / "rank0.jsonl").read_text().splitlines()) == 10


def test_errors_of_a_real_allocator_are_recognised():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    traces = Runner(small(1, error=raised.value), SETTINGS, 4).run(requests(4))
    assert len(traces) == 4


def test_a_single_question_beyond_memory_ends_the_run_and_keeps_answers(tmp_path):
    request_list = requests(6)

    def script(stage, conversation):
        if "Number 4?" in conversation.turns[0].text:
            raise torch.OutOfMemoryError("full")
        return "[0.1, 0.1, 0.9, 0.9]" if stage == "locate" else "yes"

    with pytest.raises(GenerationError):
        Runner(FakeBackend(script), SETTINGS, 4, TraceWriter(tmp_path)).run(request_list)
    finished, _ = read_traces(tmp_path)
    assert [trace.key["doc_id"] for trace in finished] == [0, 1, 2, 3]
    backend = echo_backend()
    traces = Runner(backend, SETTINGS, 4, TraceWriter(tmp_path), finished).run(request_list)
    assert [len(call.conversations) for call in macro_calls(backend)] == [2]
    assert [trace.selection.text for trace in traces] == ["yes"] * 4 + ["4", "5"]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), GenerationError("out of memory, says a server")])
def test_other_errors_are_raised_unchanged(error):
    backend = small(1, error=error)
    with pytest.raises(type(error)) as raised:
        Runner(backend, SETTINGS, 4).run(requests(4))
    assert raised.value is error
    assert len(macro_calls(backend)) == 1


def test_auto_doubles_the_batch_until_memory_runs_out_and_remembers(tmp_path):
    backend = small(20)
    runner = Runner(backend, SETTINGS, "auto", TraceWriter(tmp_path))
    traces = runner.run(requests(100))
    assert [trace.selection.text for trace in traces] == [str(number) for number in range(100)]
    answered = [len(call.conversations) for call in macro_calls(backend)]
    assert answered == [8, 16, 32, 16, 16, 16, 16, 12]
    runner.run(requests(130))
    assert [len(call.conversations) for call in macro_calls(backend)][8:] == [16, 14]


def test_auto_stops_at_the_largest_batch_given():
    backend = small(1000)
    Runner(backend, SETTINGS, "auto", largest_batch=20).run(requests(60))
    assert [len(call.conversations) for call in macro_calls(backend)] == [8, 16, 20, 16]


def test_results_keep_the_order_of_requests_when_the_work_is_sorted(tmp_path):
    request_list = [
        Request(request.key, request.limits, request.question, number % 4, f"image {number % 3}")
        for number, request in enumerate(requests(11))
    ]
    backend = echo_backend()
    traces = Runner(backend, SETTINGS, 4, TraceWriter(tmp_path)).run(request_list)
    assert [trace.selection.text for trace in traces] == [str(number) for number in range(11)]
    replies = [text for call in macro_calls(backend) for text in call.texts]
    assert replies[0].endswith("Number 3?")
    assert replies != sorted(replies)
    finished, _ = read_traces(tmp_path)
    again = Runner(echo_backend(), SETTINGS, 3, TraceWriter(tmp_path), finished[:5]).run(request_list)
    assert [trace.selection.text for trace in again] == [str(number) for number in range(11)]


def doubtful(every=3, **about):
    """Like `echo_backend`, with a confident macro answer except to every third question."""

    def script(stage, conversation):
        reply = echo_backend()._script(stage, conversation)
        return Reply(reply, (-0.01 if stage == "macro" and int(reply) % every else -2.0,))

    return SmallBackend(script, **{"room": 1000, **about})


SKIPPING = Settings.of(skip_confidence=0.5)


def sizes(backend, stage):
    return [len(call.conversations) for call in backend.calls if call.stage == stage]


def test_questions_that_are_not_skipped_wait_until_they_fill_a_batch(tmp_path):
    backend = doubtful()
    traces = Runner(backend, SKIPPING, 4, TraceWriter(tmp_path)).run(requests(32))
    assert sizes(backend, "macro") == [4] * 8
    assert sizes(backend, "locate") == sizes(backend, "micro") == [4, 4, 3]
    assert [trace.selection.text for trace in traces] == [str(number) for number in range(32)]
    assert [trace.micro is not None for trace in traces] == [number % 3 == 0 for number in range(32)]
    assert sorted(trace.key["doc_id"] for trace in read_traces(tmp_path)[0]) == list(range(32))
    alone = [Runner(doubtful(), SKIPPING, 1).run([request])[0] for request in requests(32)]
    assert [(trace.selection, trace.ppl, trace.fallback) for trace in alone] == [
        (trace.selection, trace.ppl, trace.fallback) for trace in traces
    ]


@pytest.mark.parametrize("stage", ["macro", "locate", "micro"])
def test_a_waiting_batch_is_divided_when_memory_runs_out(tmp_path, stage):
    backend = doubtful(room=3, stage=stage)
    traces = Runner(backend, SKIPPING, 8, TraceWriter(tmp_path)).run(requests(30))
    assert [trace.selection.text for trace in traces] == [str(number) for number in range(30)]
    assert len((tmp_path / "rank0.jsonl").read_text().splitlines()) == 30
    answered = [size for size in sizes(backend, stage) if size <= 3]
    assert sum(answered) == (30 if stage == "macro" else 10)
    if stage == "micro":
        assert sum(sizes(backend, "locate")) == 10  # no question is located twice


def test_waiting_questions_are_answered_when_an_image_cannot_be_read(tmp_path):
    def unreadable():
        raise UserError("broken.jpg")

    request_list = requests(9)
    request_list[8] = Request(request_list[8].key, request_list[8].limits, unreadable)
    with pytest.raises(UserError):
        Runner(doubtful(), SKIPPING, 4, TraceWriter(tmp_path)).run(request_list)
    assert sorted(trace.key["doc_id"] for trace in read_traces(tmp_path)[0]) == list(range(8))


def test_after_a_retry_for_memory_no_question_is_located_again():
    """The micro stage runs out of memory: boxes located before are kept, in the same objects."""
    backend = doubtful(every=1, room=2, stage="micro")
    traces = Runner(backend, SKIPPING, 4).run(requests(4))
    assert [trace.selection.text for trace in traces] == [str(number) for number in range(4)]
    assert sizes(backend, "micro") == [4, 2, 2]
    assert sizes(backend, "locate") == [4]
    assert all(trace.locate is not None and trace.box == (0.1, 0.1, 0.9, 0.9) for trace in traces)


def test_after_a_retry_for_memory_a_given_box_is_not_computed_again():
    found = []

    def grounder(question):
        found.append(question.id)
        return Box(0.1, 0.1, 0.9, 0.9)

    settings = replace(SKIPPING, grounding="center", grounder=grounder)
    traces = Runner(doubtful(every=1, room=2, stage="micro"), settings, 4).run(requests(4))
    assert all(trace.micro is not None for trace in traces)
    assert sorted(found) == ["0", "1", "2", "3"]


def test_ctrl_c_says_what_is_finished_and_how_to_go_on(tmp_path):
    def interrupted(stage, conversation):
        if "Number 3" in conversation.turns[0].text:
            raise KeyboardInterrupt
        return "[0.1, 0.1, 0.9, 0.9]" if stage == "locate" else "yes"

    for writer, told in ((TraceWriter(tmp_path), "resume=True"), (None, "lost")):
        runner = Runner(FakeBackend(interrupted), SETTINGS, 1, writer)
        with pytest.raises(Interrupted, match=rf"3 of 5 .*{told}"):
            runner.run(requests(5))
    assert [trace.key["doc_id"] for trace in read_traces(tmp_path)[0]] == [0, 1, 2]
