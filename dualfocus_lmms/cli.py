"""The command line, `dualfocus`. Everything heavy is loaded inside the command that needs it.

dualfocus ask photo.jpg "What is on the sign?" --pretrained CHECKPOINT --save answer.png
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from tabulate import tabulate

from dualfocus_lmms import cli_results, cli_train
from dualfocus_lmms._version import __version__
from dualfocus_lmms.errors import GenerationError, UserError

if TYPE_CHECKING:
    from dualfocus_lmms.trace import Trace

app = typer.Typer(
    help="DualFocus: two looks at a picture, the answer with the lower perplexity.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

app.add_typer(cli_train.data, name="data")
app.command("train")(cli_train.train)
app.command("check")(cli_results.check)
app.command("leaderboard")(cli_results.leaderboard)
app.command("report")(cli_results.report)

# The command reads nothing: whatever follows it, --help included, belongs to the host.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 the model, the program or a check failed, 2 a mistake of the
    user's."""
    try:
        app(prog_name="dualfocus")
    except UserError as error:
        _stop(error, 2)
    except GenerationError as error:
        _stop(error, 1)


def _stop(error: Exception, code: int) -> None:
    print(f"Error: {error}", file=sys.stderr)
    raise SystemExit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def ask(
    image: Annotated[str, typer.Argument(help="A picture file.")],
    question: Annotated[str, typer.Argument(help="The bare question, without options or answer format.")],
    pretrained: Annotated[str, typer.Option(help="Checkpoint: a folder or a hub name.")],
    save: Annotated[str | None, typer.Option(help="Write the question as a picture (.png, .jpg).")] = None,
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
    """Ask one question about one picture."""
    from dualfocus_lmms import picture
    from dualfocus_lmms.api import DualFocusModel, load_image

    if save is not None:
        picture.check_path(save)
    seen = load_image(image)
    model = DualFocusModel(
        pretrained,
        device=device,
        dtype=dtype,
        family=family,
        protocol=protocol,
        select=select,
        skip_confidence=skip_confidence,
        box_margin=box_margin,
        grounding=grounding,
        grounding_checkpoint=grounding_checkpoint,
        prompts=prompts,
    )
    trace = model.ask(seen, question, instruction, max_new_tokens)
    print(trace.to_json() if as_json else report(trace))
    if save is not None:
        picture.save(picture.draw(seen, trace), save)


def report(trace: Trace) -> str:
    """A trace in a few lines: both answers, the region, the choice."""
    from dualfocus_lmms import picture

    rows = [
        [
            f"{name} (chosen)" if trace.selection.pathway == name else name,
            "-" if answer is None else answer.text or "(empty)",
            "-" if answer is None else picture.number(trace.ppl[name]),
        ]
        for name, answer in (("macro", trace.macro), ("micro", trace.micro))
    ]
    headers = ["pathway", "answer", "perplexity"]
    # Texts as they are: an answer "1e3" is no number to be written anew.
    lines = [tabulate(rows, headers, disable_numparse=True, maxcolwidths=[None, 80, None]), ""]
    if trace.box is not None:
        fractions = ", ".join(f"{value:.3f}" for value in trace.box)
        lines.append(f"Region: [{fractions}] of the picture{_pixels(trace)}")
    lines.append(picture.verdict(trace))
    return "\n".join(lines)


def _pixels(trace: Trace) -> str:
    if trace.crop is None:
        return ""
    left, top, right, bottom = trace.crop
    width, height = trace.image_size
    return (
        f"; seen: x {left} to {right}, y {top} to {bottom} "
        f"({right - left} x {bottom - top} of {width} x {height} pixels)"
    )


@app.command()
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
    """Make a random checkpoint: it runs everything, and its answers mean nothing."""
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{out} exists already: give a new folder.")
    kind = "LLaVA" if family == "llava" else family
    if family == "llava":
        from dualfocus_lmms.models.tiny import save_tiny

        save_tiny(folder, size, tokenizer, seed, (150 if size == "tiny" else 0) if steps is None else steps)
    else:
        if (size, tokenizer, steps) != ("tiny", None, None):
            raise UserError(f"--size, --tokenizer and --steps are for family llava, not for {family}.")
        from dualfocus_lmms.models.tiny_families import save_tiny_family

        save_tiny_family(folder, family, seed)
    print(f"{folder}: a {kind} checkpoint of size {size}. Its weights are random, its answers mean nothing.")


@app.command()
def families() -> None:
    """The model families that are installed, as a Markdown table."""
    from dualfocus_lmms.families import table

    print(table())


@app.command()
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
    """A checkpoint in LLaVA's original format to the Hugging Face format."""
    from dualfocus_lmms.models.convert import convert

    conversion = convert(source, target, vision_tower, dtype, revision)
    print(conversion.table())
    print(f"\n{target}: give it with pretrained={target}. What became of each weight: conversion.json in it.")


@app.command("eval", context_settings=PASS_ON)
def evaluate(context: typer.Context) -> None:
    """Run lmms-eval with --model dualfocus. Takes all of its options; dualfocus eval --help lists them."""
    from dualfocus_lmms.models.evaluate import evaluate

    raise typer.Exit(evaluate(context.args))


@app.command()
def score(
    task: Annotated[str, typer.Option(help="A task, such as df_pope_random.")],
    answers: Annotated[
        str, typer.Option(help="JSON lines with question_id and text, or .xlsx with index and prediction.")
    ],
    out: Annotated[str | None, typer.Option(help="Write the scores as JSON.", show_default="none")] = None,
    include_path: Annotated[
        str | None, typer.Option(help="Folder of more tasks.", show_default="ours alone")
    ] = None,
) -> None:
    """Score answers that something else gave, with the code of a task. No image and no model is needed."""
    from loguru import logger

    from dualfocus_lmms.tasks.score import score

    logger.remove()  # the host's own command line does the same
    logger.add(sys.stderr, level="WARNING")
    scores = score(task, answers, include_path)
    print(scores.markdown())
    if out is not None:
        scores.save(out)


@app.command()
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
        typer.Option(help="Mode of the engine; may be given several times.", show_default="all"),
    ] = [],  # noqa: B006
    samples: Annotated[int, typer.Option(min=1, help="Questions in each repeat.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="How often all questions are asked.")] = 2,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 3,
    box_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the reply with the box.")] = 24,
    skip_share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of questions that skip the second look."),
    ] = 0.58,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1.", show_default="a GPU if any")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    out: Annotated[str | None, typer.Option(help="Folder for the figures.", show_default="none")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also a profile of one batch and its trace, in the folder.")
    ] = False,
) -> None:
    """Time, tokens and memory of every engine and of the release's way, as ratios to plain inference."""
    from dualfocus_lmms.models.bench import Plan, bench
    from dualfocus_lmms.models.bench_model import Source

    plan = Plan(tuple(batch_size), samples, repeats, new_tokens, box_tokens, skip_share, tuple(engine))
    print(bench(Source(size, pretrained, family, device, dtype), plan, out, profile))
