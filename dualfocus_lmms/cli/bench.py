"""`dualfocus bench`: what every engine costs."""

from __future__ import annotations

from typing import Annotated

import typer

from dualfocus_lmms.cli.output import show
from dualfocus_lmms.cli.shared import flag


def bench(
    size: Annotated[
        str | None,
        typer.Option(
            help="Of the random weights: tiny, 100m or 7b.", show_default="100m, tiny with --family"
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Model family; random weights of others are tiny.", show_default="llava"),
    ] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Checkpoint: a folder or a hub name.", show_default="random weights")
    ] = None,
    batch_size: Annotated[list[int], typer.Option(min=1, help="May be given several times.")] = [1, 4],  # noqa: B006
    engine: Annotated[
        list[str],
        typer.Option(
            help="Mode of the engine; may be given several times.", show_default="the fast ones and naive"
        ),
    ] = [],  # noqa: B006
    samples: Annotated[int, typer.Option(min=1, help="Questions in each repeat.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="How often all questions run.")] = 2,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 3,
    box_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the reply with the box.")] = 24,
    skip_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of questions that skip the second look."),
    ] = 0.58,
    cuda_graphs: Annotated[
        bool,
        typer.Option("--cuda-graphs", help="Also the first engine with its decoding steps as CUDA graphs."),
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="For the turns of one batch size; each mode has one.", show_default="no limit"
        ),
    ] = None,
    device: Annotated[str | None, flag("device")] = None,
    dtype: Annotated[str, flag("dtype")] = "auto",
    out: Annotated[str | None, typer.Option(help="Folder for the figures.", show_default="none")] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Also a profile of a batch of each size and its trace, in the folder."
        ),
    ] = False,
) -> None:
    """Time, tokens and memory of every engine. Also of the release's own loop; ratios to plain inference."""
    from dualfocus_lmms.models.bench.benchmark import Plan, bench
    from dualfocus_lmms.models.bench.model import Source

    plan = Plan(
        batch_sizes=tuple(batch_size),
        samples=samples,
        repeats=repeats,
        new_tokens=new_tokens,
        box_tokens=box_tokens,
        skip_share=skip_share,
        engines=tuple(engine),
        cuda_graphs=cuda_graphs,
        seconds=seconds,
    )
    source = Source(size=size, pretrained=pretrained, family=family, device=device, dtype=dtype)
    show(bench(source, plan, out, profile))
