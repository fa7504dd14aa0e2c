"""A report's other files: Markdown, a CSV file for each table, the plots, the samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dualfocus_lmms.files import atomic_write, replacing
from dualfocus_lmms.results.report.page import RunPage, when
from dualfocus_lmms.results.report.tables import Table
from dualfocus_lmms.text_output import csv_parts, csv_text, markdown

NOT_IN_CSV = ["run"]


def write_tables(
    folder: Path,
    pages: Sequence[RunPage],
    compared: Sequence[Table],
    samples: Sequence[pd.DataFrame],
    curve: str | None = None,
) -> None:
    """Write the tables and the plot of the comparison, and the tables, plots and samples of each run."""
    if curve is not None:
        atomic_write(folder / "budgets.svg", _alone(curve))
    for table in compared:
        atomic_write(folder / f"{table.name}.csv", csv_text(table.frame))
    for number, (one, its_page) in enumerate(zip(samples, pages, strict=True)):
        prefix = _prefix(number, len(pages))
        for section in its_page.sections:
            for table in section.tables:
                atomic_write(folder / f"{prefix}{table.name}.csv", csv_text(table.frame))
            if section.plot is not None:
                atomic_write(folder / f"{prefix}{section.name}.svg", _alone(section.plot))
        with (
            replacing(folder / f"{prefix}samples.csv") as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            file.writelines(csv_parts(one.drop(columns=NOT_IN_CSV)))


def _prefix(number: int, runs: int) -> str:
    """What the names of a run's files begin with: its place, where there are several runs."""
    return "" if runs == 1 else f"run{number + 1}_"


def _alone(svg: str) -> str:
    """A plot as a separate file."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}'


def report_markdown(
    title: str, pages: Sequence[RunPage], compared: Sequence[Table], curve: str | None = None
) -> str:
    """The whole report as Markdown, beside its plots."""
    lines = [f"# {markdown(title)}", ""]
    lines += [] if curve is None else ["![Accuracy against tokens](budgets.svg)", ""]
    for table in compared:
        lines += _table_lines(table, "##")
    for number, one in enumerate(pages):
        lines += [f"## {markdown(one.name)}", ""] if len(pages) > 1 else []
        lines += [line for notice in one.notices for line in (f"**{markdown(notice)}**", "")]
        facts = [*one.facts, *([("date", when(one.date))] if one.date else [])]
        lines += [markdown(", ".join(f"{name} {value}" for name, value in facts)), ""] if facts else []
        for section in one.sections:
            lines += [f"## {section.title}" if len(pages) == 1 else f"### {section.title}", ""]
            if section.plot is not None:
                lines += [f"![{section.title}]({_prefix(number, len(pages))}{section.name}.svg)", ""]
            for table in section.tables:
                heading = "###" if len(pages) == 1 else "####"
                lines += _table_lines(table, heading if table.title != section.title else None)
    return "\n".join(lines).rstrip() + "\n"


def _table_lines(table: Table, heading: str | None) -> list[str]:
    title = [] if heading is None else [f"{heading} {table.title}", ""]
    return [*title, table.markdown(), "", *([table.note, ""] if table.note else [])]
