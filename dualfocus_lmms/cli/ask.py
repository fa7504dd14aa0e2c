"""`dualfocus ask`: questions about an image, or about all images of a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from PIL import Image

from dualfocus_lmms.cli.output import progress, show
from dualfocus_lmms.cli.shared import flag, pixels
from dualfocus_lmms.errors import Interrupted, UserError
from dualfocus_lmms.grounding import ATTENTIONS
from dualfocus_lmms.text_output import excerpt, json_text

if TYPE_CHECKING:
    from dualfocus_lmms.trace import Trace


def ask(
    image: Annotated[str, typer.Argument(help="An image file, or a folder of them.")],
    pretrained: Annotated[str, flag("pretrained")],
    question: Annotated[
        list[str] | None,
        typer.Argument(
            help="Bare questions, without options or answer format. None or -: the lines of standard input.",
            show_default=False,
        ),
    ] = None,
    save: Annotated[
        str | None,
        typer.Option(help="Draw the answer into an image file (.png, .jpg); several into a folder."),
    ] = None,
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
    """Ask about an image or a folder of images. The model is loaded once for all questions."""
    from dualfocus_lmms.api import DualFocusModel, load_image

    paths, questions = images_of(image), questions_of(question)
    total = len(paths) * len(questions)
    drawings = _drawings(save, total)
    for path in paths:
        load_image(path)  # a fault is named before the model is loaded
    progress(f"Loading {pretrained} ...")
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
        crop_pixels=pixels(crop_pixels),
        regions=regions,
        looks=looks,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        grounding=grounding,
        grounding_checkpoint=grounding_checkpoint,
        prompts=prompts,
        keep_maps=save is not None and grounding in ATTENTIONS,
    )
    answered = 0
    try:
        for path in paths:
            opened = load_image(path)
            for text in questions:
                progress(f"Question {answered + 1} of {total} ...")
                trace = model.ask(opened, text, instruction, max_new_tokens)
                if total > 1:
                    trace = replace(trace, key={"id": str(answered), "image": path})
                    if not as_json:
                        show(f"{path}: {text}")
                show(json_text(trace.to_json()) if as_json else report(trace))
                if total > 1 and not as_json:
                    show("")
                _draw(opened, trace, drawings(answered, path))
                answered += 1
    except KeyboardInterrupt as error:
        raise Interrupted(f"{answered} of {total} questions are answered, and shown above.") from error


def images_of(place: str) -> list[str]:
    """The image files to ask about: the one at `place`, or all of a folder, by name. UserError for a folder
    without any."""
    if not os.path.isdir(place):
        return [place]
    endings = Image.registered_extensions()
    names = sorted(name for name in os.listdir(place) if os.path.splitext(name)[1].lower() in endings)
    files = [path for path in (os.path.join(place, name) for name in names) if os.path.isfile(path)]
    if not files:
        raise UserError(f"The folder {place!r} holds no image file, such as .png or .jpg.")
    return files


def questions_of(given: Sequence[str] | None) -> list[str]:
    """The questions as they are given, or where there are none, or "-", the lines of standard input."""
    if given and list(given) != ["-"]:
        return list(given)
    if not given and sys.stdin.isatty():
        raise UserError("No question: give one or several after the image, or lines on standard input.")
    questions = [line.strip() for line in sys.stdin if line.strip()]
    if not questions:
        raise UserError("Standard input holds no question: give one a line, or after the image.")
    return questions


def _drawings(save: str | None, total: int) -> Callable[[int, str], str | None]:
    """Where the answer to each question is drawn, by its number and image. UserError for no such place."""
    from dualfocus_lmms import visualize
    from dualfocus_lmms.files import writable

    if save is None:
        return lambda number, path: None
    if total == 1:
        visualize.check_path(save)
        return lambda number, path: save
    if os.path.splitext(save)[1].lower() in Image.registered_extensions():
        raise UserError(f"--save {save}: there are {total} answers to draw, so give a folder.")
    writable(save, "--save")
    width = len(str(total))
    return lambda number, path: os.path.join(save, f"{number + 1:0{width}}-{Path(path).stem}.png")


def _draw(image: Image.Image, trace: Trace, path: str | None) -> None:
    """Draw a trace into a file, and say which characters no font has."""
    from dualfocus_lmms import visualize

    if path is None:
        return
    visualize.save(visualize.draw(image, trace), path)
    if missing := visualize.missing_characters(trace):
        show(
            f"{path}: no font here has {excerpt(missing, 40)}, so a mark stands in their place. Install one, "
            "such as Noto Sans CJK for Chinese, Japanese and Korean.",
            error=True,
        )


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
