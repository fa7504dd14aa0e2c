"""A finished run in a few lines: what both answers and the chosen one are worth, and what they cost.

print(summary("traces/first"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tabulate import tabulate

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.results.outcomes import outcomes
from dualfocus_lmms.results.runs import TaskRun, load_run
from dualfocus_lmms.results.trace_columns import TraceColumns

_COLUMNS = ("task", "questions", "macro", "micro", "selected", "zoomed %", "s/question")


def summary(traces: str | Path) -> str:
    """One row a task, from the traces of a run, and a note for each task that cannot be scored.

    The mean scores (0 to 100) of the macro answers, of the micro ones (the macro one where there is none) and
    of the selected ones; the share of answers that come from the zoomed region; seconds a question took,
    those of a batch divided by its size.
    """
    run = load_run(traces, keep=lambda settings: TraceColumns())
    rows, notes = [], []
    for name, task in sorted(run.tasks.items()):
        try:
            scores = _scores(task)
        except UserError as error:
            scores = ["-"] * 3
            notes.append(f"{name} is not scored here: {error}")
        rows.append([name, len(task.traces), *scores, *_costs(task)])
    table = tabulate(
        rows, _COLUMNS, disable_numparse=True, colalign=("left", *["right"] * (len(_COLUMNS) - 1))
    )
    return "\n".join([table, *notes])


def _scores(task: TaskRun) -> list[Any]:
    """The mean scores of the macro, micro and selected answers, as text."""
    table = outcomes(task).table
    columns = table["macro"], table["micro"].fillna(table["macro"]), table["selected"]
    return [f"{column.mean():.1f}" for column in columns]


def _costs(task: TaskRun) -> list[str]:
    """The share of zoomed answers in percent, and seconds a question, as text."""
    if task.columns is None or not len(task.traces):
        return ["-", "-"]
    columns = task.columns.at(task.traces.rows)
    seconds = columns[["seconds_macro", "seconds_locate", "seconds_micro"]].sum().sum()
    zoomed = (columns["pathway"] == "micro").mean()
    return [f"{100 * zoomed:.0f}", f"{seconds / len(columns):.2f}"]
