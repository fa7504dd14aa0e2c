"""Traces that stay on the disk: what is found, what is read again, and how little memory they take."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualfocus_lmms import Answer, Selection, Trace, UserError
from dualfocus_lmms.json_text import placed_lines
from dualfocus_lmms.models.run.answered import Answered
from dualfocus_lmms.trace import TraceWriter
from dualfocus_lmms.trace_folder import InOrder, TracesBySample, find_traces, read_traces

LIMIT = 400  # bytes of memory that a trace of some thousands may take


def trace(doc_id: int, task: str = "t", context: str = "c", text: str = "yes") -> Trace:
    chance = random.Random(doc_id)
    locate = Answer(
        "locate", "[0, 0, 1, 1]", tuple(range(40)), tuple(-chance.random() for _ in range(40)), False
    )
    return Trace(
        key={"task": task, "split": "s", "doc_id": doc_id, "context": context},
        question_id=f"{task}/s/{doc_id}",
        prompts={"macro": f"What is number {doc_id}? " * 10},
        image_size=(60, 40),
        image_hash=f"image {doc_id}",
        selection=Selection("macro", text, "ppl"),
        macro=Answer("macro", text, (1,), (-0.1,), ended=False),
        locate=locate,
    )


def write(folder: Path, traces: list[Trace], rank: int = 0) -> Path:
    writer = TraceWriter(folder, rank)
    writer.write(traces)
    writer.close()
    return folder


def ids(traces: Any) -> list[int]:
    return [one.key["doc_id"] for one in traces]


def test_traces_are_read_when_they_are_taken(tmp_path: Path) -> None:
    written = [trace(3), trace(0), trace(2, "u"), trace(1)]
    write(tmp_path, written[:2])
    write(tmp_path, written[2:], rank=1)
    found, damaged = find_traces(tmp_path)
    assert (list(found), damaged) == (written, [])
    assert (found[2], found[-1], list(found[1:3])) == (written[2], written[3], written[1:3])
    assert found.doc_ids.tolist() == ids(found) == [3, 0, 2, 1]
    assert list(found.at(np.argsort(found.doc_ids))) == [written[1], written[3], written[2], written[0]]
    assert read_traces(tmp_path) == (written, [])
    with pytest.raises(IndexError):
        found[4]


def test_the_last_of_equal_keys_stands_where_the_first_stood(tmp_path: Path) -> None:
    first, again = [trace(0), trace(1), trace(2)], [trace(1, text="no"), trace(0, text="no")]
    write(tmp_path, [*first, *again, trace(1, text="never")])
    found, _ = find_traces(tmp_path)
    assert [(one.key["doc_id"], one.macro.text) for one in found] == [(0, "no"), (1, "never"), (2, "yes")]


def test_every_trace_is_given_while_it_is_found(tmp_path: Path) -> None:
    write(tmp_path, [trace(2), trace(0), trace(2, text="no"), trace(1)])
    given: list[Trace] = []
    found, _ = find_traces(tmp_path, given.append)
    assert ids(given) == [2, 0, 2, 1]
    assert found.rows.tolist() == [2, 1, 3]
    assert [given[row] for row in found.rows] == list(found)
    assert found.at(np.argsort(found.doc_ids)).rows.tolist() == [1, 3, 2]


def test_a_sample_is_found_by_its_key(tmp_path: Path) -> None:
    write(tmp_path, [trace(7), trace(0), trace(7, context="d", text="later"), trace(3, "u")])
    by_sample = TracesBySample(find_traces(tmp_path)[0])
    assert by_sample.groups == {("t", "s"), ("u", "s")}
    assert by_sample[trace(0).key] == trace(0)
    assert by_sample[trace(7).key].macro.text == "later"
    assert trace(3).key not in by_sample
    assert trace(8).key not in by_sample
    assert by_sample.is_same(trace(3, "u").key)
    assert not by_sample.is_same(trace(3, "u", context="d").key)
    with pytest.raises(KeyError):
        by_sample[trace(3).key]


@pytest.mark.parametrize("doc_id", [2**63, -1, True, "1", None])
def test_a_number_that_is_none_of_a_sample_is_damage(tmp_path: Path, doc_id: object) -> None:
    strange = replace(trace(1), key=trace(1).key | {"doc_id": doc_id})
    write(tmp_path, [trace(0), strange, trace(2**63 - 1)])
    found, damaged = find_traces(tmp_path)
    assert ids(found) == [0, 2**63 - 1]
    assert [line.partition(" ")[0] for line in damaged] == ["rank0.jsonl:2:"]


def test_a_file_that_changes_meanwhile_is_no_other_trace(tmp_path: Path) -> None:
    write(tmp_path, [trace(0), trace(1)])
    found, _ = find_traces(tmp_path)
    file = tmp_path / "rank0.jsonl"
    file.write_bytes(b"x" + file.read_bytes())
    with pytest.raises(UserError, match=r"rank0\.jsonl"):
        found[1]
    file.unlink()
    with pytest.raises(UserError, match=r"rank0\.jsonl"):
        list(found)


def test_lines_know_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualfocus_lmms.json_text.LONGEST_LINE", 8)
    (tmp_path / "file").write_bytes(b"one\n\n" + b"x" * 21 + b"\nlast")
    assert list(placed_lines(tmp_path / "file")) == [(1, 0, b"one\n"), (3, 5, None), (4, 27, b"last")]


def test_what_is_answered_is_read_from_the_file_that_it_was_written_to(tmp_path: Path) -> None:
    write(tmp_path, [trace(0), trace(1)])
    writer = TraceWriter(tmp_path)
    answered = Answered(find_traces(tmp_path)[0], writer)
    for number in (2, 1, 3):
        answered.add(trace(number, text=f"new {number}"))
    keys = [trace(number).key for number in (3, 0, 1)]
    assert [one.macro.text for one in InOrder(answered, keys)] == ["new 3", "yes", "new 1"]
    answered.add(trace(4))
    assert InOrder(answered, [trace(4).key])[0] == trace(4)
    assert trace(5).key not in answered
    writer.close()
    assert ids(read_traces(tmp_path)[0]) == [0, 1, 2, 3, 4]


def grown(work: Callable[[int], object], few: int = 100, many: int = 500) -> float:
    """Bytes of memory, at the most, for each further trace."""
    peaks = []
    for count in (few, few, many):  # the first brings what is loaded once
        tracemalloc.start()
        work(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[2] - peaks[1]) / (many - few)


def test_memory_does_not_grow_with_the_traces(tmp_path: Path) -> None:
    def folder(count: int) -> Path:
        return tmp_path / str(count)

    for count in (100, 500):
        write(folder(count), [trace(number) for number in range(count)])
    assert (folder(500) / "rank0.jsonl").stat().st_size > 500 * 1500

    def read(count: int) -> int:
        return sum(one.macro.usage.tokens for one in find_traces(folder(count))[0])

    assert grown(read) < LIMIT
    assert grown(lambda count: read_traces(folder(count))) > 6 * LIMIT  # the measure works


def test_memory_does_not_grow_with_the_answers(tmp_path: Path) -> None:
    def answer(count: int) -> int:
        (tmp_path / "rank0.jsonl").unlink(missing_ok=True)
        writer = TraceWriter(tmp_path)
        answered = Answered((), writer)
        for number in range(count):
            answered.add(trace(number))
        found = sum(one.macro.usage.tokens for one in InOrder(answered, [trace(0).key] * 20))
        writer.close()
        return found

    assert grown(answer) < 2 * LIMIT
