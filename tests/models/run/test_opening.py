"""Memory that runs out while images are opened."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dualfocus_lmms import GenerationError, Question, Settings, StopCriteria, UserError, read_traces
from dualfocus_lmms.models.run.request import Request
from dualfocus_lmms.models.run.runner import Runner
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.trace import TraceWriter

SHORTAGES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


def requests(count: int, fails: dict[int, int], error: Exception) -> list[Request]:
    """Questions about images, some of which cannot be opened the first few times."""
    left = Counter(fails)

    def make(number: int) -> Request:
        key: dict[str, Any] = {"task": "t", "split": "s", "doc_id": number, "context": "c"}

        def question() -> Question:
            if left[number] > 0:
                left[number] -= 1
                raise error
            return Question(
                str(number), Image.new("RGB", (20, 20)), f"Number {number}?", f"Number {number}?", key
            )

        return Request(key, StopCriteria(8), question)

    return [make(number) for number in range(count)]


def backend(confident: bool = True) -> FakeBackend:
    def script(stage: str, conversation: Any) -> Reply:
        if stage == "locate":
            return Reply("[0.1, 0.1, 0.9, 0.9]", (-0.1,))
        number = conversation.turns[0].text.split()[-1].rstrip("?")
        return Reply(number, (-0.01 if confident or stage == "micro" else -2.0,))

    return FakeBackend(script)


def sizes(model: FakeBackend, stage: str = "macro") -> list[int]:
    return [len(call.conversations) for call in model.calls if call.stage == stage]


@pytest.mark.parametrize("error", SHORTAGES)
def test_fewer_are_opened_and_nothing_is_lost_or_answered_twice(tmp_path: Path, error: Exception) -> None:
    model = backend()
    runner = Runner(model, Settings.of(), 8, TraceWriter(tmp_path))
    traces = runner.run(requests(20, {3: 1, 9: 1}, error))
    assert [trace.selection.text for trace in traces] == [str(number) for number in range(20)]
    assert sum(sizes(model)) == 20
    assert max(sizes(model)) < 8
    assert sorted(trace.key["doc_id"] for trace in read_traces(tmp_path)[0]) == list(range(20))


def test_what_waits_for_its_second_look_is_answered_first(tmp_path: Path) -> None:
    """The images of questions that wait are open too."""
    model = backend(confident=False)
    settings = replace(Settings.of(), skip_confidence=0.5)
    runner = Runner(model, settings, 4, TraceWriter(tmp_path))
    failures = 2  # of three, and then alone
    traces = runner.run(requests(7, {6: failures}, MemoryError()))
    assert [trace.micro is not None for trace in traces] == [True] * 7


def test_one_image_that_memory_cannot_hold_ends_the_run_and_keeps_answers(tmp_path: Path) -> None:
    runner = Runner(backend(), Settings.of(), 4, TraceWriter(tmp_path))
    with pytest.raises(GenerationError, match="t/s/5"):
        runner.run(requests(8, {5: 9}, MemoryError()))
    assert [trace.key["doc_id"] for trace in read_traces(tmp_path)[0]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), GenerationError("out of memory, says a server")])
def test_other_errors_are_raised_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        Runner(backend(), Settings.of(), 4).run(requests(8, {5: 9}, error))
    assert raised.value is error


def test_an_image_that_cannot_be_read_is_still_a_mistake_of_the_users(tmp_path: Path) -> None:
    runner = Runner(backend(), Settings.of(), 2, TraceWriter(tmp_path))
    with pytest.raises(UserError):
        runner.run(requests(6, {4: 1}, UserError("broken.jpg")))
    assert len(read_traces(tmp_path)[0]) == 4
