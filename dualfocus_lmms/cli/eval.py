"""`dualfocus eval`, which is lmms-eval, `dualfocus tasks`, `dualfocus arguments` and `dualfocus score`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dualfocus_lmms.cli.output import show, warnings_only
from dualfocus_lmms.errors import choose

if TYPE_CHECKING:
    from dualfocus_lmms.options import Options


def evaluate(context: typer.Context) -> None:
    """Run lmms-eval with --model dualfocus. Takes all of its options; dualfocus eval --help lists them."""
    from dualfocus_lmms.models.host.evaluate import evaluate

    if {"-h", "--help"} & set(context.args):
        show(_help())
    raise typer.Exit(evaluate(context.args, _check_questions, _finished))


def _check_questions(tasks: Sequence[str], limit: int | None) -> None:
    """UserError for a user's own file of questions that has faults, before a model is loaded for it."""
    if "df_local" in tasks:
        from dualfocus_lmms.tasks.local.docs import check

        check(limit)


def _finished(args: Any) -> None:
    """Show what a run is worth, from its traces, and the next command."""
    from dualfocus_lmms.replay import MODEL
    from dualfocus_lmms.results.runs import trace_argument
    from dualfocus_lmms.results.summary import summary

    if not args.model.startswith("dualfocus"):
        return
    if args.model == MODEL:
        if args.output_path:
            show(f"\nNext: dualfocus report {shlex.quote(str(args.output_path))} --out report")
        return
    traces = trace_argument({"config": {"model_args": args.model_args}})
    if traces is None:
        show("\nNext time: trace=FOLDER in --model_args keeps both answers, for dualfocus report.")
        return
    run = shlex.quote(str(args.output_path or traces))
    show(f"\n{summary(traces)}\n\nNext: dualfocus report {run} --out report")


def _help() -> str:
    """What comes before the host's own help: an example, our model arguments, our tasks."""
    from dualfocus_lmms.models.host.options import ModelOptions
    from dualfocus_lmms.models.host.task_list import table
    from dualfocus_lmms.options_text import short_list

    return (
        "Usage: dualfocus eval --tasks TASK --model_args pretrained=PATH,trace=FOLDER \\\n"
        "           --batch_size 4 --output_path FOLDER --log_samples\n\n"
        f"Model arguments, in --model_args (`dualfocus arguments` says more):\n{short_list(ModelOptions)}\n\n"
        f"Tasks:\n{table()}\n\n"
        "Options, those of lmms-eval, with _ or - between the words:\n"
    )


def tasks() -> None:
    """Our tasks: what each asks, and in which groups they are."""
    from dualfocus_lmms.models.host.task_list import table

    show(table())
    show("\nNext: dualfocus eval --tasks TASK --model_args pretrained=CHECKPOINT --limit 10")


def arguments(
    model: Annotated[
        str, typer.Option(help="dualfocus, dualfocus_server or dualfocus_replay.")
    ] = "dualfocus",
) -> None:
    """What --model_args of eval takes, as a Markdown table."""
    from dualfocus_lmms.options_text import table

    show(table(_options(model)))


def _options(model: str) -> type[Options]:
    """What `--model_args` of a model class takes."""
    if model == "dualfocus":
        from dualfocus_lmms.models.host.options import ModelOptions

        return ModelOptions
    if model == "dualfocus_server":
        from dualfocus_lmms.models.server.options import ServerOptions

        return ServerOptions
    if model == "dualfocus_replay":
        from dualfocus_lmms.replay import ReplayOptions

        return ReplayOptions
    raise choose("model", model, ("dualfocus", "dualfocus_server", "dualfocus_replay"))


def score(
    task: Annotated[str, typer.Option(help="A task or a group, such as df_pope_random or df_pope.")],
    answers: Annotated[
        str, typer.Option(help="JSON lines with question_id and text, or .xlsx with index and prediction.")
    ],
    out: Annotated[str | None, typer.Option(help="Write the scores as JSON.", show_default="none")] = None,
    include_path: Annotated[
        str | None, typer.Option(help="Folder of more tasks.", show_default="ours alone")
    ] = None,
) -> None:
    """Score answers of other programs with the code of a task. Needs no image and no model."""
    from dualfocus_lmms.tasks.common.score_group import score_any

    warnings_only()
    scores = score_any(task, answers, include_path)
    show(scores.markdown())
    if out is not None:
        scores.save(out)
