"""`dualfocus train`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dualfocus_lmms.cli.output import show


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of one of ours.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="name=value, such as steps=10 or training.learning_rate=1e-4.")
    ] = None,
) -> None:
    """Train a DualFocus model. The same command continues a run; several GPUs: torchrun -m dualfocus_lmms."""
    from dualfocus_lmms.train.trainer.trainer import train as run

    result = run(recipe, overrides or [])
    if os.environ.get("RANK", "0") == "0":
        show(result)
