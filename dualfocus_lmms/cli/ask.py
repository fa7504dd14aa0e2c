"""`dualfocus ask`: one question about one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dualfocus_lmms.cli.output import show
from dualfocus_lmms.cli.shared import flag
from dualfocus_lmms.text_output import json_text

if TYPE_CHECKING:
    from dualfocus_lmms.trace import Trace


def ask(
    image: Annotated[str, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help="The bare question, without options or answer format.")],
    pretrained: Annotated[str, flag("pretrained")],
    save: Annotated[str | None, typer.Option(help="Draw the answer into an image file (.png, .jpg).")] = None,
    protocol: Annotated[str, flag("protocol")] = "paper",
    select: Annotated[str | None, flag("select")] = None,
    skip_confidence: Annotated[float, flag("skip_confidence")] = 1.0,
    box_margin: Annotated[int | None, flag("box_margin")] = None,
    crop_pixels: Annotated[str | None, flag("crop_pixels")] = None,
    regions: Annotated[str, flag("regions")] = "union",
    looks: Annotated[int, flag("looks")] = 1,
    min_pixels: Annotated[int | None, flag("min_pixels")] = None,
    max_pixels: Annotated[int | None, flag("max_pixels")] = None,
    grounding: Annotated[str, flag("grounding")] = "model",
    grounding_checkpoint: Annotated[str | None, flag("grounding_checkpoint")] = None,
    prompts: Annotated[str | None, flag("prompts")] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help='How to answer, on a separate line after the question; "" for none.',
            show_default="a single word or phrase",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    device: Annotated[str | None, flag("device")] = None,
    dtype: Annotated[str, flag("dtype")] = "auto",
    family: Annotated[str | None, flag("family")] = None,
    chat_template: Annotated[str, flag("chat_template")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the trace: one line of JSON.")] = False,
) -> None:
    """Ask one question about one image."""
    from dualfocus_lmms import visualize
    from dualfocus_lmms.api import DualFocusModel, load_image

    if save is not None:
        visualize.check_path(save)
    opened = load_image(image)
    model = DualFocusModel(
        pretrained,
        device=device,
        dtype=dtype,
        family=family,
        chat_template=chat_template,
        protocol=protocol,
        select=select,
        skip_confidence=skip_confidence,
        box_margin=box_margin,
        crop_pixels=int(crop_pixels) if crop_pixels and crop_pixels.isdecimal() else crop_pixels,
        regions=regions,
        looks=looks,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        grounding=grounding,
        grounding_checkpoint=grounding_checkpoint,
        prompts=prompts,
    )
    trace = model.ask(opened, question, instruction, max_new_tokens)
    show(json_text(trace.to_json()) if as_json else report(trace))
    if save is not None:
        visualize.save(visualize.draw(opened, trace), save)


def report(trace: Trace) -> str:
    """A trace in a few lines: both answers, the region, the choice."""
    from tabulate import tabulate

    from dualfocus_lmms import visualize

    rows = [
        [
            f"{name} (chosen)" if trace.selection.pathway == name else name,
            "-" if answer is None else answer.text or "(empty)",
            "-" if answer is None else visualize.perplexity(trace, name),
        ]
        for name, answer in (("macro", trace.macro), ("micro", trace.micro))
    ]
    headers = ["pathway", "answer", visualize.perplexity_name(trace)]
    # Texts as they are: an answer "1e3" is not to be reformatted as a number.
    lines = [tabulate(rows, headers, disable_numparse=True, maxcolwidths=[None, 80, None]), ""]
    if trace.box is not None:
        fractions = ", ".join(f"{value:.3f}" for value in trace.box)
        lines.append(f"Region: [{fractions}] of the image{_pixels(trace)}")
    lines.append(visualize.verdict(trace))
    return "\n".join(lines)


def _pixels(trace: Trace) -> str:
    """Where each crop is, and how large the model saw it."""
    width, height = trace.image_size
    sizes = trace.crop_sizes or (trace.crop_size,) * len(trace.shown)
    return "".join(
        f"; crop: x {left} to {right}, y {top} to {bottom} "
        f"({right - left} x {bottom - top} of {width} x {height} pixels"
        f"{'' if size is None else ', seen as {} x {}'.format(*size)})"
        for (left, top, right, bottom), size in zip(trace.shown, sizes, strict=True)
    )
