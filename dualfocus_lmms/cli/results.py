"""`dualfocus calibrate`, `check`, `report` and `leaderboard`: what runs tell."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from dualfocus_lmms.cli.output import show, warnings_only


def check(
    run: Annotated[str, typer.Argument(help="A run's --output_path, or a folder of traces.")],
    baseline: Annotated[str, typer.Option(help="The file to compare with.")] = "results/baseline.json",
    traces: Annotated[
        str | None, typer.Option(help="The run's traces.", show_default="the folder that the run names")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="A larger drop of a metric fails, in points, significant or not.", show_default="none"
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="How often a check may fail by chance, over all metrics.")
    ] = 0.05,
    update: Annotated[bool, typer.Option("--update", help="Make the run the new baseline.")] = False,
    junit: Annotated[str | None, typer.Option(help="Write JUnit XML.", show_default="none")] = None,
    summary: Annotated[str | None, typer.Option(help="Write Markdown.", show_default="none")] = None,
) -> None:
    """Compare a run with the baseline, for CI. Exit code 1: worse, samples missing, or other data."""
    from dualfocus_lmms.files import save_text
    from dualfocus_lmms.results.baseline import Baseline
    from dualfocus_lmms.results.gate import check as gate
    from dualfocus_lmms.results.gate import report as gate_report
    from dualfocus_lmms.results.runs import load_run

    found = load_run(run, traces)
    if update:
        show(gate.update(found, baseline))
        return
    result = gate.check(found, Baseline.load(baseline), max_drop, alpha)
    text = gate_report.markdown(result)
    show(text, end="")
    if summary is not None:
        save_text(summary, text, "summary")
    if junit is not None:
        save_text(junit, gate_report.junit(result), "JUnit file")
    raise typer.Exit(1 if result.all_failures else 0)


def report(
    runs: Annotated[
        list[str], typer.Argument(help="Runs: the --output_path of each, or its folder of traces.")
    ],
    out: Annotated[str, typer.Option(help="Folder for the page, Markdown and CSV files.")],
    pictures: Annotated[int, typer.Option(min=0, help="Samples whose image is in the page.")] = 400,
    traces: Annotated[
        str | None, typer.Option(help="Traces of a single run.", show_default="the folder that the run names")
    ] = None,
) -> None:
    """Runs as one page: tables, plots and every sample. It needs no network."""
    from dualfocus_lmms.results.report.build import report

    warnings_only()
    show(report(runs, out, pictures, traces).text())


def calibrate(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Finished runs, not of the test split: the --output_path of each, or its traces."
        ),
    ],
    out: Annotated[str, typer.Option(help="File for the rule: select=calibrated:FILE.")],
    rule: Annotated[
        str, typer.Option(help="bias, one number, or logistic, which is compared with it.")
    ] = "bias",
    folds: Annotated[int, typer.Option(help="Parts of the cross-validation, 2 or more.")] = 10,
    traces: Annotated[
        str | None, typer.Option(help="Traces of a single run.", show_default="the folder that the run names")
    ] = None,
) -> None:
    """Fit a rule on runs: how much more certain micro must be. Estimates the gain too."""
    from dualfocus_lmms.results.calibration.build import calibrate

    warnings_only()
    show(calibrate(runs, out, rule, folds, traces).text)


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
    write: Annotated[
        bool, typer.Option("--write", help="Write the page, README.md of the folder or of results/.")
    ] = False,
    folder: Annotated[
        str | None,
        typer.Option(
            help="Folder of published/ and runs/. An installed copy writes to no other.",
            show_default="the package's own",
        ),
    ] = None,
) -> None:
    """Published and measured numbers, task by task. --add records a run, --write writes the page."""
    from dualfocus_lmms.results.leaderboard import records
    from dualfocus_lmms.results.leaderboard import table as board
    from dualfocus_lmms.results.runs import load_run

    warnings_only()
    where = None if folder is None else Path(folder)
    if add is not None:
        where = where or records.own_folder()  # an error comes before the work
        path = records.add(records.record(load_run(add, traces), hardware, pathways), where)
        there = "" if folder is None else f" --folder {shlex.quote(folder)}"
        show(f"{path}\nNext: dualfocus leaderboard --write{there}")
    elif write:
        show(board.write(where))
    else:
        show(board.render(board.leaderboard(where or records.FOLDER, task), form), end="")
