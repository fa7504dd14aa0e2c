"""The command line, `dualfocus`. Everything heavy is imported inside the command that needs it.

dualfocus ask photo.jpg "What is on the sign?" --pretrained CHECKPOINT --save answer.png
"""

from __future__ import annotations

import errno
from typing import Annotated, Any

import typer
import typer.core

from dualfocus_lmms._version import __version__
from dualfocus_lmms.cli import app as try_out
from dualfocus_lmms.cli import ask, bench, checkpoints, data, reproduce, results, train, view
from dualfocus_lmms.cli import eval as evaluation
from dualfocus_lmms.cli.output import show
from dualfocus_lmms.errors import GenerationError, Interrupted, UserError
from dualfocus_lmms.imports import own_process

# In the order of a person's day: ask, evaluate, look at the results, then models of one's own.
ORDER = (
    "ask", "app", "tasks", "arguments", "families", "eval", "report", "view", "score", "check", "calibrate",
    "leaderboard", "reproduce", "data", "train", "convert", "tiny", "bench",
)  # fmt: skip


class Commands(typer.core.TyperGroup):
    """Lists the commands in ORDER and shows what an interruption leaves; typer itself prints "Aborted"."""

    def list_commands(self, context: Any) -> list[str]:
        return sorted(super().list_commands(context), key=ORDER.index)

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except Interrupted as error:
            show(f"\nInterrupted: {error}", error=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    help="DualFocus: two looks at an image, the answer with the lower perplexity.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},  # --max_new_tokens too
    rich_markup_mode=None,
)

# A disk, a quota or a file that is full, and a disk that is only read.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# The command reads nothing: whatever follows it, --help included, belongs to the host.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


app.command()(ask.ask)
app.command("app")(try_out.app)
app.command("eval", context_settings=PASS_ON)(evaluation.evaluate)
app.command()(evaluation.tasks)
app.command()(evaluation.arguments)
app.command()(evaluation.score)
app.command()(reproduce.reproduce)
app.command()(results.calibrate)
app.command()(results.check)
app.command()(results.leaderboard)
app.command()(results.report)
app.command()(view.view)
app.command()(checkpoints.tiny)
app.command()(checkpoints.convert)
app.command()(checkpoints.families)
app.add_typer(data.data, name="data")
app.command()(train.train)
app.command()(bench.bench)


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 the model, the program or a check failed, 2 a user's mistake
    or a full disk, 130 interrupted."""
    own_process()
    try:
        app(prog_name="dualfocus")
    except UserError as error:
        _stop(error, 2)
    except GenerationError as error:
        _stop(error, 1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        _stop(f"{error}. Make room or give another folder; what was written before is whole.", 2)


def _stop(error: object, code: int) -> None:
    show(f"Error: {error}", error=True)
    raise SystemExit(code)


def _version(wanted: bool) -> None:
    if wanted:
        show(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
