"""`dualfocus eval`, which is lmms-eval, and `dualfocus score`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer


def evaluate(context: typer.Context) -> None:
    """Run lmms-eval with --model dualfocus. Takes all of its options; dualfocus eval --help lists them."""
    from dualfocus_lmms.models.host.evaluate import evaluate

    raise typer.Exit(evaluate(context.args, _check_questions))


def _check_questions(tasks: Sequence[str], limit: int | None) -> None:
    """UserError for a user's own file of questions that has faults, before a model is loaded for it."""
    if "df_local" in tasks:
        from dualfocus_lmms.tasks.local.docs import check

        check(limit)


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
    from loguru import logger

    from dualfocus_lmms.tasks.common.score_group import score_any

    logger.remove()  # the host's own command line does the same
    logger.add(sys.stderr, level="WARNING")
    scores = score_any(task, answers, include_path)
    print(scores.markdown())
    if out is not None:
        scores.save(out)
