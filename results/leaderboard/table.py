"""Published and measured numbers in one table, task by task: `dualfocus leaderboard`.

A row says in `source` which of both it is. `dualfocus leaderboard --write` writes the whole table as a page:
results/README.md, or README.md of the folder that `--folder` names.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.files import save_text
from dualfocus_lmms.results.leaderboard import records
from dualfocus_lmms.results.leaderboard.records import (
    COUNTS,
    FOLDER,
    Measured,
    MeasuredTask,
    Pathway,
    Published,
    Score,
    read_measured,
    read_published,
)
from dualfocus_lmms.text_output import csv_text, link, markdown

FORMATS = ("md", "csv", "html")
LEFT, RIGHT = ["task", "model", "method"], ["n", "questions", "source", "reference", "link"]
FIRST = ("accuracy", "circular_accuracy")  # the metrics that a task is sorted by
ERROR = "_stderr"
UNITS = {"points": " gain", "ms": " (ms)", "GB": " (GB)"}  # behind the name of a metric
LOWER_IS_BETTER = {"time (ms)", "memory (GB)"}
METHODS: dict[Pathway, str] = {
    "selected": "{}",
    "macro": "{}, its macro answers",
    "micro": "{}, its micro answers",
}

INTRODUCTION = """\
# Leaderboard

Written by `dualfocus leaderboard --write`; edits are lost. The numbers are in `{data}published/`, one file
for each paper, and in `{data}runs/`, one for each run of ours.

- **published, ...** was printed in a paper or on its authors' page. An empty cell is not printed, or was not
  readable. `... gain` is a difference that the text gives, in points.
- **measured, ...** was computed by this package: value, standard error, number of questions, hardware and
  commit, with all settings in the linked file. {measured}
- `IoU` (0 to 1) and `coverage` (percent) say where a run of ours looked, where the task annotates regions:
  the overlap of the located box with the annotated one, and the share of the annotated regions shown.

Scores of one task can differ in prompt, image size, decoding and scoring; that two rows are in one table does
not make them comparable. `n` is the number of questions, of how many where it was not all.

To add a run:

```bash
dualfocus leaderboard --add RUN_FOLDER --hardware "one A100"
dualfocus leaderboard --write
```

Where the numbers come from:

{papers}
"""


@dataclass(frozen=True)
class Row:
    """One row of one task. scores: by metric. n: questions answered, of `questions`; None where unknown."""

    task: str
    model: str
    method: str
    source: str
    reference: str
    link: str
    scores: dict[str, Score] = field(default_factory=dict)
    n: int | None = None
    questions: int | None = None


def leaderboard(folder: Path = FOLDER, task: str | None = None) -> pd.DataFrame:
    """All rows, or those of a task; the tasks by name, ours first, each with the best on top.

    Columns: LEFT, one for each metric with `<metric>_stderr` after it where there is one, RIGHT.
    """
    rows = [row for published in read_published(folder) for row in _published_rows(published)]
    rows += [row for file, run in read_measured(folder).items() for row in _measured_rows(file, run)]
    tasks = sorted({row.task for row in rows}, key=lambda name: (not name.startswith("df_"), name))
    if not tasks:
        raise UserError(f"No numbers in {folder}: give the folder that holds published/ and runs/.")
    if task is not None and task not in tasks:
        raise choose("task", task, tasks)
    sections = [_sorted([row for row in rows if row.task == name]) for name in tasks if task in (None, name)]
    metrics = dict.fromkeys(column for section in sections for column in section.columns)
    order = [*LEFT, *(name for name in metrics if name not in {*LEFT, *RIGHT}), *RIGHT]
    table = pd.concat([section.astype(object) for section in sections], ignore_index=True)
    return table.reindex(columns=order).infer_objects()


def _published_rows(published: Published) -> Iterator[Row]:
    """One for each task that a row of a paper has a number of."""
    paper = published.paper
    for table in published.tables:
        for row in table.rows:
            by_task: dict[str, dict[str, Score]] = {}
            for column, value in zip(table.columns, row.values, strict=True):
                if value is not None:
                    name = column.metric + UNITS.get(column.unit, "")
                    by_task.setdefault(column.task, {})[name] = Score(value=value, error=None)
            for task, scores in by_task.items():
                yield Row(
                    task=task,
                    model=row.model,
                    method=row.method,
                    source=f"published, {table.table}",
                    reference=f"{paper.short} ({paper.year}), row “{row.row}”",
                    link=paper.url,
                    scores=scores,
                    n=table.n,
                    questions=table.n,
                )


def _measured_rows(file: str, run: Measured) -> Iterator[Row]:
    """One for each task and pathway of a run."""
    for name, task in run.tasks.items():
        for pathway, scores in task.scores.items():
            where = _located(task) if pathway == "selected" else {}
            yield Row(
                task=name,
                model=run.model,
                method=METHODS[pathway].format(run.method),
                source=f"measured, {run.finished:%Y-%m-%d}",
                reference=f"{run.hardware}, commit {run.commit or 'unknown'}",
                link=file,
                scores={metric: score for metric, score in scores.items() if metric not in COUNTS} | where,
                n=task.n,
                questions=task.questions,
            )


def _located(task: MeasuredTask) -> dict[str, Score]:
    """Where a run looked, as columns of its row; nothing where that is unknown."""
    if task.located is None:
        return {}
    return {
        "IoU": Score(value=task.located.iou, error=None),
        "coverage": Score(value=task.located.coverage, error=None),
    }


def _sorted(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows of one task, the best first; only metrics that one of them has."""
    metrics = dict.fromkeys(metric for row in rows for metric in row.scores)
    metrics = dict.fromkeys([*(name for name in FIRST if name in metrics), *metrics])
    columns: dict[str, list[float | None]] = {}
    for metric in metrics:
        scores = [row.scores.get(metric) for row in rows]
        columns[metric] = [None if score is None else score.value for score in scores]
        errors = [None if score is None else score.error for score in scores]
        if any(error is not None for error in errors):
            columns[metric + ERROR] = errors
    left = {name: [getattr(row, name) for row in rows] for name in LEFT}
    right = {name: [getattr(row, name) for row in rows] for name in RIGHT}
    table = pd.DataFrame({**left, **columns, **right})
    main = next(iter(metrics))
    order = [main in LOWER_IS_BETTER, True, True, True]
    return table.sort_values([main, "model", "method", "source"], ascending=order)


# --- texts -------------------------------------------------------------------------------------------------


def render(table: pd.DataFrame, form: str = "md") -> str:
    """A table of `leaderboard` as text: md and html with a part for each task, csv with plain numbers."""
    if form not in FORMATS:
        raise choose("format", form, FORMATS)
    if form == "csv":
        return csv_text(table)
    parts = [(str(task), _cells(part)) for task, part in table.groupby("task", sort=False)]
    if form == "html":
        return _page(parts)
    return "\n".join(f"## {markdown(task)}\n\n{_markdown_table(cells)}\n" for task, cells in parts)


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one task as texts: a value with its error, n of how many; columns without any left out."""
    metrics = [name for name in table.columns if name not in {*LEFT, *RIGHT} and not name.endswith(ERROR)]
    texts = {name: list(table[name]) for name in ("model", "method")}
    for metric in metrics:
        values = table[metric]
        if values.notna().any():
            errors = table.get(metric + ERROR, pd.Series(None, index=table.index))
            measured = table["source"].str.startswith("measured")
            texts[metric] = [_number(*cell) for cell in zip(values, errors, measured, strict=True)]
    if table["n"].notna().any():
        texts["n"] = [_size(*cell) for cell in zip(table["n"], table["questions"], strict=True)]
    return pd.DataFrame({**texts, **{name: list(table[name]) for name in ("source", "reference", "link")}})


def _number(value: float | None, error: float | None, measured: bool) -> str:
    """A measured number with two decimals, a published one as it was printed."""
    if pd.isna(value):
        return ""
    if not measured:
        return str(float(value))  # type: ignore[arg-type]
    return f"{value:.2f}" if pd.isna(error) else f"{value:.2f} ± {error:.2f}"


def _size(n: float | None, questions: float | None) -> str:
    if pd.isna(n):
        return ""
    return f"{n:,.0f}" if n == questions else f"{n:,.0f} of {questions:,.0f}"


def _markdown_table(cells: pd.DataFrame) -> str:
    shown = cells.map(markdown)
    shown["source"] = list(map(link, cells["source"], cells["link"]))
    texts = ("model", "method", "source", "reference")
    shown = shown.drop(columns="link")
    aligned = ["left" if name in texts else "right" for name in shown.columns]
    return tabulate(
        shown.values.tolist(),
        [markdown(name) for name in shown.columns],
        tablefmt="github",
        colalign=aligned,
        disable_numparse=True,
    )


def _page(parts: Sequence[tuple[str, pd.DataFrame]]) -> str:
    """One HTML file that needs no other."""
    body = "\n".join(
        f"<h2>{html.escape(task)}</h2>\n{cells.to_html(index=False, border=0, escape=True)}"
        for task, cells in parts
    )
    style = "body{font-family:sans-serif}td,th{padding:.2em .8em;text-align:left}"
    head = f'<meta charset="utf-8"><title>Leaderboard</title><style>{style}</style>'
    return f"<!doctype html>\n<html><head>{head}</head>\n<body><h1>Leaderboard</h1>\n{body}\n</body></html>\n"


def readme(folder: Path | None = None) -> str:
    """The page about a folder's numbers, whose links begin there. None: about the package's own, which lie in
    data/ beside the page."""
    folder, data = (records.FOLDER, f"{records.FOLDER.name}/") if folder is None else (folder, "")
    runs = len(read_measured(folder))
    count = {0: "There is none yet.", 1: "There is one."}.get(runs, f"There are {runs}.")
    papers = "\n".join(_source(published) for published in read_published(folder))
    head = INTRODUCTION.format(data=data, measured=count, papers=papers)
    table = leaderboard(folder)
    ours = table["source"].str.startswith("measured")
    table["link"] = table["link"].mask(ours, data + table["link"])
    return head + "\n" + render(table)


def _source(published: Published) -> str:
    """A paper with its notes, as a list item."""
    paper = published.paper
    lines = [f"- {markdown(paper.title)} ({paper.year}), {link(paper.url, paper.url)}. {paper.note}".rstrip()]
    lines += [f"  - {table.table}: {table.note}" for table in published.tables if table.note]
    return "\n".join(lines)


def write(folder: Path | None = None) -> Path:
    """Rewrite README.md of a folder. None: of results/, in a checkout alone (see `records.own_folder`)."""
    path = (folder or records.own_folder().parent) / "README.md"
    save_text(path, readme(folder), "leaderboard")
    return path
