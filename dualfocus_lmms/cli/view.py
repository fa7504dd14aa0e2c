"""`dualfocus view`: the report of a run that is still going."""

from __future__ import annotations

from typing import Annotated

import typer

from dualfocus_lmms.cli.output import show, warnings_only


def view(
    folder: Annotated[str, typer.Argument(help="A run's --output_path, or its folder of traces.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1.", show_default="a free one")
    ] = 0,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two reports, at least.")] = 10,
    pictures: Annotated[int, typer.Option(min=0, help="Samples whose image is in the page.")] = 400,
    traces: Annotated[
        str | None, typer.Option(help="The run's traces.", show_default="the folder that the run names")
    ] = None,
) -> None:
    """Show the report of a run while it is going."""
    from dualfocus_lmms.results.report.live import view

    warnings_only()
    view(folder, show, port, every, pictures, traces)
