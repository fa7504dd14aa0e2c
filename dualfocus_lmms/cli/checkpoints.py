"""`dualfocus tiny`, `convert` and `families`: checkpoints to run, and which can be run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dualfocus_lmms.cli.output import show
from dualfocus_lmms.errors import UserError


def tiny(
    out: Annotated[str, typer.Argument(help="The checkpoint's folder; made if missing.")],
    size: Annotated[str, typer.Option(help="tiny, 100m or 7b.")] = "tiny",
    family: Annotated[str, typer.Option(help="Model family; those besides llava are always tiny.")] = "llava",
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder of a Llama tokenizer.", show_default="single characters"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Training steps on the form of the replies: a box, yes or no.",
            show_default="150 for size tiny, else 0",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
) -> None:
    """Make a small random checkpoint, to try things. It runs everything, and its answers mean nothing."""
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{out} exists already: give a new folder.")
    kind = "LLaVA" if family == "llava" else family
    if family == "llava":
        from dualfocus_lmms.models.tiny.llava import save_tiny

        save_tiny(folder, size, tokenizer, seed, (150 if size == "tiny" else 0) if steps is None else steps)
    else:
        if (size, tokenizer, steps) != ("tiny", None, None):
            raise UserError(f"--size, --tokenizer and --steps are for family llava, not for {family}.")
        from dualfocus_lmms.models.tiny.families import save_tiny_family

        save_tiny_family(folder, family, seed)
    show(f"{folder}: a {kind} checkpoint of size {size}. Its weights are random, its answers mean nothing.")


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Checkpoint: a folder or a hub name.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A new folder.")],
    vision_tower: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of the CLIP encoder.",
            show_default="the one inside SRC, else the one SRC names",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto (as it is), float32, float16 or bfloat16.")] = "auto",
    revision: Annotated[
        str | None, typer.Option(help="Version of SRC on the hub.", show_default="newest")
    ] = None,
) -> None:
    """Convert LLaVA's original format to the Hugging Face format."""
    from dualfocus_lmms.models.convert.llava import convert

    conversion = convert(source, target, vision_tower, dtype, revision)
    show(conversion.table())
    show(f"\n{target}: give it with pretrained={target}. What became of each weight: conversion.json in it.")


def families() -> None:
    """The model families that are installed, as a Markdown table."""
    from dualfocus_lmms.families import table

    show(table())
