"""The paper's figures beside ours: what `dualfocus reproduce` prints of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from scipy.stats import norm
from tabulate import tabulate

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.results.leaderboard.records import (
    FOLDER,
    Measured,
    Pathway,
    PublishedTable,
    Score,
    read_published,
)
from dualfocus_lmms.text_output import csv_text, markdown

PAPERS = ("DualFocus", "DualFocus release")
# What each protocol is compared with: the page of the released checkpoints, and the paper.
TABLES = {"release": ("model zoo",), "paper": ("table 1", "table 2", "table 3")}
ANSWERS: dict[str, Pathway] = {
    "DualFocus": "selected",
    "DualFocus, macro only": "macro",
    "DualFocus, micro only": "micro",
}
PAGE = """\
# {model}: published and measured

{runs}

{table}

Percent, and points for the difference, with its 95% interval: from the standard error of the measured figure
and half of the last printed digit. Reproduced: the interval holds 0. Not printed: the paper has a column for
it, and no figure of this model and protocol is known.
"""
HALF_A_DIGIT = 0.05  # points: figures are printed with one decimal
Z = float(norm.ppf(0.975))

Key = tuple[str, str, Pathway]  # task, metric, answers


@dataclass(frozen=True, slots=True)
class Reproduced:
    """One figure. value, error, published: in percent. n: questions answered, of `questions`.

    published is None, and table empty, where no table that we have prints the figure.
    """

    protocol: str
    task: str
    metric: str
    answers: Pathway
    value: float
    error: float | None
    n: int
    questions: int
    published: float | None
    table: str

    @property
    def difference(self) -> float | None:
        """Ours minus the published one, in points."""
        return None if self.published is None else self.value - self.published

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the difference, 95%, in points: from our standard error and half of the last printed digit.

        The questions are the same, so the published figure has no sampling error of its own here.
        """
        if self.difference is None or self.error is None:
            return None
        half = Z * self.error + HALF_A_DIGIT
        return self.difference - half, self.difference + half

    @property
    def verdict(self) -> str:
        """`reproduced` where the interval holds 0, else `higher` or `lower`; or why none can be given."""
        if self.published is None:
            return "not printed"
        if self.n < self.questions:
            return "not all questions"
        if self.interval is None:
            return "no standard error"
        low, high = self.interval
        return "lower" if high < 0 else "higher" if low > 0 else "reproduced"


def published_models(folder: Path = FOLDER) -> list[str]:
    """The models of which results with DualFocus are printed."""
    compared = {name for names in TABLES.values() for name in names}
    tables = [table for table in _tables(folder) if table.table in compared]
    return sorted({row.model for table in tables for row in table.rows if row.method in ANSWERS})


def model_of(checkpoint: str, given: str | None = None, folder: Path = FOLDER) -> str:
    """The published model that a checkpoint is: `given`, or the one in its name. UserError without either."""
    known = published_models(folder)
    if given is not None:
        if given not in known:
            raise choose("published model", given, known)
        return given
    found = [name for name in known if name.lower() in checkpoint.lower()]
    if len(found) != 1:
        raise UserError(
            f"The name {checkpoint!r} does not say which published model it is: give --published with one of "
            f"{', '.join(known)}."
        )
    return found[0]


def compare(runs: Mapping[str, Measured], model: str, folder: Path = FOLDER) -> list[Reproduced]:
    """The figures of runs, by protocol, that the paper has a column for, beside what it prints of a model."""
    tables = _tables(folder)
    columns = {(column.task, column.metric) for table in tables for column in table.columns}
    rows = []
    for protocol, run in runs.items():
        printed = _printed(protocol, model, tables)
        for key, score, n, questions in _scores(run):
            task, metric, answers = key
            if key in printed or (answers == "selected" and (task, metric) in columns):
                published, table = printed.get(key, (None, ""))
                rows.append(
                    Reproduced(protocol, *key, score.value, score.error, n, questions, published, table)
                )
    return rows


def _scores(run: Measured) -> Iterator[tuple[Key, Score, int, int]]:
    for name, task in run.tasks.items():
        for answers, scores in task.scores.items():
            for metric, score in scores.items():
                yield (name, metric, answers), score, task.n, task.questions


def _tables(folder: Path) -> list[PublishedTable]:
    """Those of the paper and of its release."""
    return [
        table
        for published in read_published(folder)
        if published.paper.short in PAPERS
        for table in published.tables
    ]


def _printed(protocol: str, model: str, tables: Sequence[PublishedTable]) -> dict[Key, tuple[float, str]]:
    """(figure, table) of what a protocol is compared with; of equal keys the first table's."""
    found: dict[Key, tuple[float, str]] = {}
    for table in tables:
        for row in table.rows:
            if table.table in TABLES[protocol] and row.model == model and row.method in ANSWERS:
                for column, value in zip(table.columns, row.values, strict=True):
                    if value is not None:
                        key = (column.task, column.metric, ANSWERS[row.method])
                        found.setdefault(key, (value, table.table))
    return found


# --- texts -------------------------------------------------------------------------------------------------


def frame(rows: Sequence[Reproduced]) -> pd.DataFrame:
    """The figures as numbers, a row each; low and high are the interval of the difference."""
    derived = [
        {
            "difference": row.difference,
            "low": None if row.interval is None else row.interval[0],
            "high": None if row.interval is None else row.interval[1],
            "verdict": row.verdict,
        }
        for row in rows
    ]
    return pd.DataFrame([{**asdict(row), **more} for row, more in zip(rows, derived, strict=True)])


def csv(rows: Sequence[Reproduced]) -> str:
    return csv_text(frame(rows))


def table(rows: Sequence[Reproduced]) -> str:
    """The figures as a Markdown table."""
    cells = [
        (
            row.protocol,
            row.task,
            row.metric,
            row.answers,
            f"{row.value:.1f}" if row.error is None else f"{row.value:.1f} ± {row.error:.1f}",
            f"{row.n:,}" if row.n == row.questions else f"{row.n:,} of {row.questions:,}",
            "" if row.published is None else f"{row.published:.1f} ({row.table})",
            _difference(row),
            row.verdict,
        )
        for row in rows
    ]
    return tabulate(
        [[markdown(cell) for cell in row] for row in cells],
        ("protocol", "task", "metric", "answers", "measured", "n", "published", "difference", "verdict"),
        tablefmt="github",
        colalign=("left",) * 4 + ("right",) * 4 + ("left",),
        disable_numparse=True,
    )


def _difference(row: Reproduced) -> str:
    if row.difference is None:
        return ""
    if row.interval is None:
        return f"{row.difference:+.1f}"
    low, high = row.interval
    return f"{row.difference:+.1f} ({low:+.1f} to {high:+.1f})"


def page(rows: Sequence[Reproduced], model: str, runs: Mapping[str, Measured]) -> str:
    """The table with what was run, as Markdown."""
    what = [
        f"- {protocol}: {markdown(run.method)}, {markdown(run.model)}, {run.finished:%Y-%m-%d %H:%M}, "
        f"{markdown(run.hardware)}, commit {run.commit or 'unknown'}"
        for protocol, run in runs.items()
    ]
    return PAGE.format(model=markdown(model), runs="\n".join(what), table=table(rows))
