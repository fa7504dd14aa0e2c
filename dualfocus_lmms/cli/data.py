"""`dualfocus data ...`: what training and GQA as multiple choice need."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dualfocus_lmms.cli.output import show
from dualfocus_lmms.errors import UserError

data = typer.Typer(help="Make DualFocus training data.", no_args_is_help=True, rich_markup_mode=None)


@data.command()
def vg(
    root: Annotated[str, typer.Option(help="Folder of Visual Genome: its JSON files and images.")],
    out: Annotated[str, typer.Option(help="Folder for the samples and the report.")],
    config: Annotated[
        str | None, typer.Option(help="YAML of settings over the defaults.", show_default="configs/vg.yaml")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="one for each core")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many images.", show_default="all")] = None,
    protocol: Annotated[str, typer.Option(help="Whose geometry crops the regions.")] = "release",
    annotations_only: Annotated[
        bool, typer.Option("--annotations-only", help="Boxes without images; no image file is needed.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Chooses the examples in the report.")] = 0,
    regions: Annotated[
        str, typer.Option(help="union, or separate: also each region of a question by itself.")
    ] = "union",
) -> None:
    """Visual Genome to two-round DualFocus samples (section 3.2). The same command continues a run."""
    from dualfocus_lmms.train.vg.visual_genome import build

    report = build(
        root,
        out,
        config,
        workers or os.cpu_count() or 1,
        limit,
        protocol,
        annotations_only,
        seed,
        regions=regions,
    )
    show(report.markdown())
    if not report.kept:
        raise UserError(
            f"No question was kept, so there are no samples: see {os.path.join(out, 'report.md')}."
        )


@data.command()
def scenes(
    out: Annotated[str, typer.Argument(help="Folder to write or continue, in Visual Genome's own format.")],
    split: Annotated[str, typer.Option(help="train, validation or test; they share no scene.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="Scenes.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    layout: Annotated[
        str, typer.Option(help="shapes; near or apart, with questions about two things; or tiny.")
    ] = "shapes",
) -> None:
    """Drawn scenes with details too small to read at once, for a first try without photographs. The same
    command continues a run."""
    from dualfocus_lmms.scene_layouts import make_layouts
    from dualfocus_lmms.train.data.scene_files import write_visual_genome

    write_visual_genome(out, list(make_layouts(layout, split, seed, count)))
    apart = " --protocol paper --regions separate" if layout in ("near", "apart") else ""
    show(f"{out}: {count} scenes. Next: dualfocus data vg --root {out} --out SAMPLES{apart}")


@data.command()
def export(
    samples: Annotated[str, typer.Argument(help="Folder of samples, from `dualfocus data vg`.")],
    out: Annotated[str, typer.Argument(help="Folder for the JSON file and the images.")],
    form: Annotated[str, typer.Option(help="llava or messages.")] = "llava",
    protocol: Annotated[str, typer.Option(help="Whose wordings to use for the questions.")] = "release",
    family: Annotated[str, typer.Option(help="The model family whose boxes are written.")] = "llava",
    instruction: Annotated[
        str | None,
        typer.Option(
            help='How to answer, after each question; "" for nothing.',
            show_default="a single word or phrase",
        ),
    ] = None,
    regions: Annotated[
        str, typer.Option(help="union, or separate: a box and a crop of each region.")
    ] = "union",
) -> None:
    """Samples to the JSON that other training code reads."""
    from dualfocus_lmms.plugins import load_family
    from dualfocus_lmms.prompts import SHORT_ANSWER
    from dualfocus_lmms.train.data.export import export as write
    from dualfocus_lmms.train.data.samples import read_samples

    instruction = SHORT_ANSWER if instruction is None else instruction
    kind = load_family(family)
    rows = read_samples(samples, regions == "separate")
    show(write(rows, out, form, protocol, kind.box_format, instruction, kind.resolution, regions))


@data.command()
def gqa_mcq(
    questions: Annotated[str, typer.Option(help="GQA's own testdev_balanced_questions.json.")],
    out: Annotated[
        str | None, typer.Option(help="The file to write or go on with.", show_default="named by its source")
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            help="Base URL of an OpenAI-compatible chat endpoint; its key in OPENAI_API_KEY.",
            show_default="none: distractors offline",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The endpoint's name of the model.", show_default="none")
    ] = None,
    seed: Annotated[int, typer.Option(help="Orders the options; offline it draws them too.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    retries: Annotated[int, typer.Option(min=0, help="Of a request that failed, with growing pauses.")] = 5,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million prompt tokens.", show_default="none")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of a million completion tokens.", show_default="none")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many questions.", show_default="all")
    ] = None,
) -> None:
    """GQA as multiple choice (GQA*). The same command requests again what is missing, and nothing else."""
    from dualfocus_lmms.tasks.gqa.mcq import build

    report = build(
        questions,
        out,
        endpoint=endpoint,
        model=model,
        seed=seed,
        concurrency=concurrency,
        retries=retries,
        price_in=price_in,
        price_out=price_out,
        limit=limit,
    )
    show(report.text())
    raise typer.Exit(1 if report.failures else 0)
