"""The columns that are kept of traces: their values, and how little memory they take."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dualfocus_lmms import Trace
from dualfocus_lmms.results.runs import load_run
from dualfocus_lmms.results.trace_columns import BOX, COSTS, TraceColumns, costs_of

Make = Callable[..., Any]
LIMIT = 300  # bytes of memory for each trace whose texts came before; its numbers alone are 200


def test_the_values_of_some_rows(trace_of: Make) -> None:
    several = replace(trace_of(2), crops=((0, 0, 10, 10), (5, 5, 60, 40)))
    one = replace(trace_of(3), crop=(1, 2, 30, 20))
    traces: list[Trace] = [trace_of(0, macro="a cat"), trace_of(1, micro=None), several, one]
    columns = TraceColumns.of(traces)
    assert len(columns) == 4
    found = columns.at(np.array([3, 1, 0]))
    assert found["text_macro"].tolist() == ["yes", "yes", "a cat"]
    assert found["text_micro"].tolist() == ["no", None, "no"]
    assert found["pathway"].tolist() == ["macro"] * 3
    assert found["fallback"].tolist() == [None, "no_box", None]
    assert found["ppl_macro"].tolist() == [traces[0].ppl["macro"]] * 3
    micro = traces[0].ppl["micro"]
    np.testing.assert_array_equal(found["ppl_micro"], [micro, np.nan, micro])
    np.testing.assert_array_equal(found[list(COSTS)], [costs_of(traces[row]) for row in (3, 1, 0)])
    np.testing.assert_array_equal(found[list(BOX)].to_numpy()[:2], [(0, 0, 0.5, 0.5), (np.nan,) * 4])
    assert found[["width", "height"]].to_numpy().tolist() == [[60, 40]] * 3
    assert [list(map(tuple, columns.shown(row))) for row in range(4)] == [
        [],
        [],
        [(0, 0, 10, 10), (5, 5, 60, 40)],
        [(1, 2, 30, 20)],
    ]


def test_all_rows_in_order_are_no_copy(trace_of: Make) -> None:
    columns = TraceColumns.of([trace_of(number) for number in range(3)])
    numbers = [columns.at(rows)["ppl_macro"].to_numpy() for rows in (np.arange(3), np.arange(3))]
    assert np.shares_memory(*numbers)
    assert not np.shares_memory(numbers[0], columns.at(np.array([0, 2, 1]))["ppl_macro"].to_numpy())


def test_a_number_that_no_float_holds_is_damage(trace_of: Make, write_traces: Make, tmp_path: Path) -> None:
    large = replace(trace_of(1), image_size=(10**400, 40))
    run = load_run(write_traces(tmp_path, [trace_of(0), large, trace_of(2)]), keep=lambda _: TraceColumns())
    (task,) = run.tasks.values()
    assert task.columns is not None
    assert len(task.columns) == len(task.traces) == 2
    assert task.traces.rows.tolist() == [0, 1]
    assert [line.partition(" ")[0] for line in run.damaged] == ["rank0.jsonl:2:"]


def test_columns_are_compact(trace_of: Make) -> None:
    chance = random.Random(0)
    words = [f"answer {number}" for number in range(20)]
    traces = [
        trace_of(number, macro=chance.choice(words), micro=chance.choice(words)) for number in range(50)
    ]

    def taken(count: int) -> int:
        tracemalloc.start()
        columns = TraceColumns()
        for number in range(count):
            columns.add(traces[number % len(traces)])
        columns.at(np.arange(count))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    taken(100)  # brings what is loaded once
    assert (taken(4000) - taken(1000)) / 3000 < LIMIT
