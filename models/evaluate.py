"""`dualfocus eval`: lmms-eval in this process, with an exit code that tells and messages without traceback.

Everything is passed on to the host unchanged. This adds: `--model dualfocus` by default, start-up without
the host's own tasks when only ours are asked for, and a stop at the first failure (the host itself prints a
traceback, goes on and exits with 0).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.manifest import ONLY_OUR_TASKS

OUR_PREFIX = "df_"


class _Stop(BaseException):
    """Carries an error past the host, which catches every Exception and exits with 0."""


def evaluate(arguments: Sequence[str]) -> int:
    """Run the host with its own command-line `arguments`; the exit code.

    Raises what went wrong, a UserError where one lies beneath it.
    """
    arguments = list(arguments)
    if not {"--help", "-h"} & set(arguments):
        arguments = _checked(arguments)
    if _only_our_tasks(arguments):
        os.environ[ONLY_OUR_TASKS] = "1"
    sys.argv = ["lmms-eval", *arguments]
    host = _import_host()
    single = host.cli_evaluate_single

    def stop_at_failure(args: Any) -> Any:
        try:
            return single(args)
        except Exception as error:
            raise _Stop from error

    host.cli_evaluate_single = stop_at_failure
    try:
        host.cli_evaluate()
    except _Stop as stop:
        raise _user_error(stop.__cause__) from None
    finally:
        host.cli_evaluate_single = single
    return 0


def _import_host() -> Any:
    """The host's main module. What it loads stays: searching it for garbage takes a tenth longer."""
    gc.disable()
    try:
        import lmms_eval.__main__ as host
    finally:
        gc.enable()
    return host


def _checked(arguments: list[str]) -> list[str]:
    """The arguments with our model as default. UserError for what the host would misread."""
    if _value(arguments, "--config") is None:
        if _value(arguments, "--tasks") is None:
            raise UserError("No task: give --tasks, for example --tasks df_pope (--tasks list names all).")
        if _value(arguments, "--model") is None:
            arguments = ["--model", "dualfocus", *arguments]
    limit = _value(arguments, "--limit")
    if limit is not None and _is_zero(limit):
        raise UserError(
            f"--limit {limit} leaves no question (the host would run them all): give a number of questions "
            "per task, 1 or more, a share below 1, or leave it out."
        )
    return arguments


def _is_zero(number: str) -> bool:
    try:
        return float(number) == 0
    except ValueError:
        return False  # the host's parser says what it allows


def _only_our_tasks(arguments: Sequence[str]) -> bool:
    tasks = (_value(arguments, "--tasks") or "").split(",")
    return all(task.strip().startswith(OUR_PREFIX) for task in tasks)


def _value(arguments: Sequence[str], name: str) -> str | None:
    """The last value of an option given as `--name value` or `--name=value`."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
    return found


def _user_error(error: BaseException | None) -> BaseException:
    """The UserError beneath `error`, where the host wrapped one; else the error itself."""
    assert error is not None
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ConnectionError):
            return UserError(
                f"A data set or checkpoint cannot be fetched: {cause}. Without a network, name local ones: "
                "DUALFOCUS_DATA=<folder of benchmark files> and pretrained=<folder>."
            )
    return error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        attempt = getattr(error, "last_attempt", None)  # tenacity's RetryError, around the host's own retries
        error = attempt.exception() if attempt is not None else error.__cause__ or error.__context__
