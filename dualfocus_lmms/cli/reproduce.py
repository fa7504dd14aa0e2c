"""`dualfocus reproduce`: the paper's tables from a checkpoint, in one command that can be resumed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualfocus_lmms.cli.output import show, warnings_only
from dualfocus_lmms.errors import UserError

if TYPE_CHECKING:
    from dualfocus_lmms.results.runs import Run

PAGE, FIGURES, SETTINGS = "reproduction.md", "reproduction.csv", "reproduce.json"


def reproduce(
    checkpoint: Annotated[
        str, typer.Argument(help="A folder or a hub name; one in LLaVA's original format is converted.")
    ],
    out: Annotated[str, typer.Option(help="Folder for runs and tables; the same one resumes.")],
    tasks: Annotated[str, typer.Option(help="Tasks or groups, separated by commas.")] = "df_paper",
    published: Annotated[
        str | None,
        typer.Option(help="The model whose figures are compared.", show_default="the one in the name"),
    ] = None,
    batch_size: Annotated[str, typer.Option(help="As of eval.")] = "auto",
    num_processes: Annotated[int, typer.Option(min=1, help="GPUs, one process each.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task.", show_default="all")
    ] = None,
    model_args: Annotated[
        str, typer.Option(help="More of eval's model arguments.", show_default="none")
    ] = "",
    vision_tower: Annotated[
        str | None, typer.Option(help="Of convert.", show_default="the checkpoint's own")
    ] = None,
) -> None:
    """Run the paper's benchmarks, under both protocols. Compares the scores with the published ones."""
    from dualfocus_lmms.results.leaderboard import reproduction
    from dualfocus_lmms.results.leaderboard.records import record

    warnings_only()
    folder = Path(out)
    model = reproduction.model_of(checkpoint, published)
    _claim(folder, {"checkpoint": checkpoint, "tasks": tasks, "limit": limit, "model_args": model_args})
    pretrained = _converted(checkpoint, folder / "checkpoint", vision_tower)
    runs, hardware = {}, _hardware()
    for protocol in reproduction.TABLES:
        where = folder / protocol
        given = [f"pretrained={pretrained}", f"protocol={protocol}", f"trace={where / 'traces'}"]
        options = [
            *("--model_args", ",".join([*given, "resume=True", *([model_args] if model_args else [])])),
            *("--tasks", tasks, "--batch_size", batch_size),
            *("--output_path", str(where), "--log_samples"),
            *(("--limit", str(limit)) if limit is not None else ()),
        ]
        runs[protocol] = record(_finished(where, options, num_processes), hardware, pathways=True)
    rows = reproduction.compare(runs, model)
    _write(folder, runs, reproduction.page(rows, model, runs), reproduction.csv(rows))


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """UserError for a folder that another reproduction began."""
    from dualfocus_lmms.files import save_text
    from dualfocus_lmms.json_text import Kind

    file = folder / SETTINGS
    if file.is_file():
        before: dict[str, Any] = Kind(dict[str, Any]).read(file, "Delete it, or give another --out.")
        if changed := [name for name, value in settings.items() if before.get(name) != value]:
            name = changed[0]
            raise UserError(
                f"{folder} holds a reproduction with {name} {before.get(name)!r}, not {settings[name]!r}: "
                "give the same one to go on, or another --out."
            )
    save_text(file, json.dumps(settings, indent=1) + "\n", "settings")


def _converted(checkpoint: str, target: Path, vision_tower: str | None) -> str:
    """What to load: the checkpoint itself, or what became of one in LLaVA's original format."""
    from dualfocus_lmms.models.checkpoint.folder import is_original
    from dualfocus_lmms.models.convert.llava import convert

    if target.exists():  # it appears when it is whole
        return str(target)
    if not is_original(checkpoint):
        return checkpoint
    show(convert(checkpoint, target, vision_tower).table())
    return str(target)


def _finished(folder: Path, options: Sequence[str], num_processes: int) -> Run:
    """The run in a folder, by `eval` in a process of its own unless it ended before."""
    from dualfocus_lmms.results.runs import load_run, newest_results

    if newest_results(folder) is None:
        launch = [sys.executable, "-m"]
        if num_processes > 1:
            launch += ["accelerate.commands.launch", "--num_processes", str(num_processes), "-m"]
        show(f"\n$ {shlex.join(['dualfocus', 'eval', *options])}")
        done = subprocess.run([*launch, "dualfocus_lmms", "eval", *options], check=False)
        if done.returncode != 0:
            show(f"The run in {folder} stopped, see above. The same command resumes it.", error=True)
            raise typer.Exit(done.returncode)
    return load_run(folder)


def _hardware() -> str:
    from dualfocus_lmms.models.bench.machine import hardware
    from dualfocus_lmms.models.checkpoint.loading import torch_device

    return hardware(torch_device(None))


def _write(folder: Path, runs: Iterable[str], page: str, figures: str) -> None:
    from dualfocus_lmms.files import save_text

    save_text(folder / PAGE, page, "table")
    save_text(folder / FIGURES, figures, "figures")
    folders = " ".join(shlex.quote(str(folder / name)) for name in runs)
    show(f"\n{page}\nWritten to {folder / PAGE} and {folder / FIGURES}.")
    show(f"Next: dualfocus report {folders} --out REPORT")
