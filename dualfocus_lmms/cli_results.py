"""The part of the command line that reads runs: `dualfocus check`, ..."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def check(
    run: Annotated[str, typer.Argument(help="A run's --output_path, or a folder of traces.")],
    baseline: Annotated[str, typer.Option(help="The file to compare with.")] = "results/baseline.json",
    traces: Annotated[
        str | None, typer.Option(help="The run's traces.", show_default="the folder that the run names")
    ] = None,
    max_drop: Annotated[float, typer.Option(help="Largest drop of a metric that passes, in points.")] = 1.0,
    alpha: Annotated[float, typer.Option(help="A drop with p below it is significant.")] = 0.05,
    update: Annotated[bool, typer.Option("--update", help="Make the run the new baseline.")] = False,
    junit: Annotated[str | None, typer.Option(help="Write JUnit XML.", show_default="none")] = None,
    summary: Annotated[str | None, typer.Option(help="Write Markdown.", show_default="none")] = None,
) -> None:
    """Fail with exit code 1 when a run is worse than the baseline, lacks samples or has other data."""
    from dualfocus_lmms.results import gate, gate_report
    from dualfocus_lmms.results.baseline import Baseline, write_text
    from dualfocus_lmms.results.runs import load_run

    found = load_run(run, traces)
    if update:
        print(gate.update(found, baseline))
        return
    result = gate.check(found, Baseline.load(baseline), max_drop, alpha)
    text = gate_report.markdown(result)
    print(text, end="")
    if summary is not None:
        write_text(summary, text, "summary")
    if junit is not None:
        write_text(junit, gate_report.junit(result), "JUnit file")
    raise typer.Exit(1 if result.all_failures else 0)


def report(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: the --output_path of each, or its folder of traces.")
    ],
    out: Annotated[str, typer.Option(help="Folder for the page, Markdown and CSV files.")],
    pictures: Annotated[int, typer.Option(min=0, help="Samples whose picture is in the page.")] = 400,
    traces: Annotated[
        str | None, typer.Option(help="Traces of a single run.", show_default="the folder that the run names")
    ] = None,
) -> None:
    """Show what runs did: tables, plots and every sample, on one page that needs no network."""
    from loguru import logger

    from dualfocus_lmms.results.report import report

    logger.remove()  # the host's own command line does the same
    logger.add(sys.stderr, level="WARNING")
    print(report(runs, out, pictures, traces).text())


def leaderboard(
    task: Annotated[str | None, typer.Option(help="One task only.", show_default="all")] = None,
    form: Annotated[str, typer.Option("--format", help="md, csv or html.")] = "md",
    add: Annotated[
        str | None, typer.Option(metavar="RUN", help="Record a run: its --output_path.", show_default="none")
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="With --add: what it ran on, in words.", show_default="none")
    ] = "",
    traces: Annotated[
        str | None,
        typer.Option(help="With --add: the run's traces.", show_default="the folder that the run names"),
    ] = None,
    pathways: Annotated[
        bool, typer.Option("--pathways", help="With --add: score macro and micro answers by themselves too.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Write README.md beside the numbers.")] = False,
    folder: Annotated[
        str | None, typer.Option(help="Folder of published/ and runs/.", show_default="the package's own")
    ] = None,
) -> None:
    """Published and measured numbers, task by task; --add records a run, --write writes the page."""
    from loguru import logger

    from dualfocus_lmms.results import leaderboard as board
    from dualfocus_lmms.results import records
    from dualfocus_lmms.results.runs import load_run

    logger.remove()  # the host's own command line does the same
    logger.add(sys.stderr, level="WARNING")
    where = records.FOLDER if folder is None else Path(folder)
    if add is not None:
        path = records.add(records.record(load_run(add, traces), hardware, pathways), where)
        print(f"{path}\nNext: dualfocus leaderboard --write")
    elif write:
        print(board.write(where))
    else:
        print(board.render(board.leaderboard(where, task), form), end="")
