"""`dualfocus ask`: one question about one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from tabulate import tabulate

if TYPE_CHECKING:
    from dualfocus_lmms.trace import Trace


def ask(
    image: Annotated[str, typer.Argument(help="An image file.")],
    question: Annotated[str, typer.Argument(help="The bare question, without options or answer format.")],
    pretrained: Annotated[str, typer.Option(help="Checkpoint: a folder or a hub name.")],
    save: Annotated[str | None, typer.Option(help="Draw the answer into an image file (.png, .jpg).")] = None,
    protocol: Annotated[str, typer.Option(help="paper or release.")] = "paper",
    select: Annotated[
        str | None, typer.Option(help="Selection rule: ppl, release, macro, micro, ... or a plugin's.")
    ] = None,
    skip_confidence: Annotated[
        float, typer.Option(help="Skip the second look when 1/PPL of the first answer is above it.")
    ] = 1.0,
    box_margin: Annotated[
        int | None, typer.Option(help="Pixels the region grows on each side.", show_default="the protocol's")
    ] = None,
    crop_pixels: Annotated[
        str | None,
        typer.Option(
            help="Pixels the crop is enlarged to: auto (as the whole image), original or a number.",
            show_default="the protocol's",
        ),
    ] = None,
    min_pixels: Annotated[
        int | None, typer.Option(help="Fewest pixels of an image.", show_default="the checkpoint's")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Most pixels of an image.", show_default="the checkpoint's")
    ] = None,
    grounding: Annotated[
        str,
        typer.Option(
            help="Where the region comes from: model, whole, center, random, dino, attention or "
            "attention_plain."
        ),
    ] = "model",
    grounding_checkpoint: Annotated[
        str | None,
        typer.Option(help="Detector of grounding dino.", show_default="a GroundingDINO of the hub"),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="Wordings: paper, figure8, release or native.", show_default="the protocol's"),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help='How to answer, a line of its own after the question; "" for none.',
            show_default="a single word or phrase",
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="a GPU if any")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    family: Annotated[
        str | None, typer.Option(help="Model family.", show_default="the one for the checkpoint's type")
    ] = None,
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
        protocol=protocol,
        select=select,
        skip_confidence=skip_confidence,
        box_margin=box_margin,
        crop_pixels=int(crop_pixels) if crop_pixels and crop_pixels.isdecimal() else crop_pixels,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        grounding=grounding,
        grounding_checkpoint=grounding_checkpoint,
        prompts=prompts,
    )
    trace = model.ask(opened, question, instruction, max_new_tokens)
    print(trace.to_json() if as_json else report(trace))
    if save is not None:
        visualize.save(visualize.draw(opened, trace), save)


def report(trace: Trace) -> str:
    """A trace in a few lines: both answers, the region, the choice."""
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
    if trace.crop is None:
        return ""
    left, top, right, bottom = trace.crop
    width, height = trace.image_size
    seen = "" if trace.crop_size is None else ", seen as {} x {}".format(*trace.crop_size)
    return (
        f"; crop: x {left} to {right}, y {top} to {bottom} "
        f"({right - left} x {bottom - top} of {width} x {height} pixels{seen})"
    )
