"""`dualfocus eval`, which is lmms-eval, `dualfocus arguments` and `dualfocus score`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dualfocus_lmms.cli.output import show, warnings_only
from dualfocus_lmms.errors import choose

if TYPE_CHECKING:
    from dualfocus_lmms.options import Options


def evaluate(context: typer.Context) -> None:
    """Run lmms-eval with --model dualfocus. Takes all of its options; dualfocus eval --help lists them."""
    from dualfocus_lmms.models.host.evaluate import evaluate

    raise typer.Exit(evaluate(context.args, _check_questions))


def _check_questions(tasks: Sequence[str], limit: int | None) -> None:
    """UserError for a user's own file of questions that has faults, before a model is loaded for it."""
    if "df_local" in tasks:
        from dualfocus_lmms.tasks.local.docs import check

        check(limit)


def arguments(
    model: Annotated[
        str, typer.Option(help="dualfocus, dualfocus_server or dualfocus_replay.")
    ] = "dualfocus",
) -> None:
    """The model arguments (--model_args of eval), as a Markdown table."""
    from dualfocus_lmms.options import table

    show(table(_options(model)))


def _options(model: str) -> type[Options]:
    """What `--model_args` of a model class takes."""
    if model == "dualfocus":
        from dualfocus_lmms.models.host.options import ModelOptions

        return ModelOptions
    if model == "dualfocus_server":
        from dualfocus_lmms.models.server.host import ServerOptions

        return ServerOptions
    if model == "dualfocus_replay":
        from dualfocus_lmms.models.host.replay import ReplayOptions

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
    """Score answers from elsewhere with the code of a task. No image and no model is needed."""
    from dualfocus_lmms.tasks.common.score_group import score_any

    warnings_only()
    scores = score_any(task, answers, include_path)
    show(scores.markdown())
    if out is not None:
        scores.save(out)
