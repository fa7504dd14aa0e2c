"""`dualfocus eval`: lmms-eval in this process, with an exit code for each failure, and no traceback.

Everything is passed on to the host unchanged. This adds: `--model dualfocus` by default, start-up without
the host's own tasks when only ours are asked for, a message for arguments that the host refuses, and a stop
at the first failure, results that cannot be written among them (the host itself logs what went wrong, goes on
and exits with 0).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from importlib import import_module
from traceback import walk_tb
from typing import Any

from dualfocus_lmms.errors import GenerationError, Interrupted, UserError, choose, did_you_mean
from dualfocus_lmms.files import writable
from dualfocus_lmms.imports import large_imports, without_pipelines
from dualfocus_lmms.models.host.manifest import ONLY_OUR_TASKS
from dualfocus_lmms.models.host.requests import GENERATION_SETTINGS, ONLY_GENERATE_UNTIL
from dualfocus_lmms.models.host.task_list import task_names

OUR_PREFIX = "df_"
OUR_MODELS = "dualfocus"  # how the names of ours begin
_HOST = "lmms_eval.__main__"
_METRICS = "lmms_eval.api.registry"  # imports `evaluate`
_REPLAY = "dualfocus_replay"  # opens no image
_NO_MODEL = "hf"  # the host's default for --model, which it does not have itself
# The host's functions that check its arguments: their own ValueError or AssertionError is the user's mistake.
_CHECKS = ("cli_evaluate", "cli_evaluate_single", "simple_evaluate", "_require_model_id")
_WRITES_RESULTS = "lmms_eval.loggers.evaluation_tracker"  # it only logs where that fails


class _Stop(BaseException):
    """Carries an error past the host, which catches every Exception and exits with 0."""


def evaluate(
    arguments: Sequence[str],
    check_questions: Callable[[Sequence[str], int | None], None] | None = None,
    finished: Callable[[Any], None] | None = None,
) -> int:
    """Run the host with its own command-line `arguments`; the exit code.

    check_questions: called with the tasks and the limit before a model is loaded. finished: called with the
    host's arguments after each run, on the first process alone.

    Raises what went wrong, a UserError where one lies beneath it.
    """
    sys.argv = ["lmms-eval", *arguments]
    host = _import_host()
    sys.argv[1:] = _spelled(host, arguments)
    single = host.cli_evaluate_single
    done: list[Any] = []

    def stop_at_failure(args: Any) -> Any:
        try:
            _check(args)
            if check_questions is not None and args.model != _REPLAY:
                tasks = [task.strip() for task in args.tasks.split(",")]
                whole = args.limit is not None and args.limit >= 1
                check_questions(tasks, int(args.limit) if whole else None)
            with _fewest_tasks(args), _results_written(args.output_path):
                results = single(args)
            done.append(args)
            return results
        except KeyboardInterrupt as error:
            raise error if isinstance(error, Interrupted) else Interrupted(_how_to_go_on(args)) from error
        except Exception as error:
            raise _Stop from error

    host.cli_evaluate_single = stop_at_failure
    try:
        host.cli_evaluate()
    except _Stop as stop:
        raise _user_error(stop.__cause__) from None
    except ValueError as error:  # of a --config file
        raise _user_error(error) from None
    finally:
        host.cli_evaluate_single = single
    if finished is not None and os.environ.get("RANK", "0") == "0":
        for args in done:
            finished(args)
    return 0


def _spelled(host: Any, arguments: Sequence[str]) -> list[str]:
    """The arguments with options as the host spells them: --output_path for --output-path.

    UserError for one that is none of the host's and close to one.
    """
    sys.argv[1:] = []
    parser, _ = host.parse_eval_args()
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", parser.format_help()))
    return [_spelling(argument, known) for argument in arguments]


def _spelling(argument: str, known: Set[str]) -> str:
    name, equals, value = argument.partition("=")
    if not name.startswith("--") or name in known:
        return argument
    for other in (name[2:], name[2:].replace("-", "_"), name[2:].replace("_", "-")):
        if any(option.startswith(f"--{other}") for option in known):  # argparse takes the beginning of one
            return f"--{other}{equals}{value}"
    if hint := did_you_mean(name, sorted(known)):
        raise UserError(f"Unknown option {name}.{hint} (`dualfocus eval --help` lists all options.)")
    return argument


def _how_to_go_on(args: Any) -> str:
    """For an interruption before the first question, or after the last."""
    if "trace=" in str(args.model_args):
        return (
            "no question was being answered. Answers given before are in the trace folder: run the same "
            "command with resume=True to resume."
        )
    return "no question was being answered. Nothing is kept: with trace=<folder> answers would be."


def _import_host() -> Any:
    """The host's main module."""
    with large_imports():
        with without_pipelines():
            import_module(_METRICS)
        return import_module(_HOST)


def _check(args: Any) -> None:
    """Our model as default, in the host's parsed arguments. UserError for what the host would misread."""
    if args.model == _NO_MODEL:
        args.model = "dualfocus"
    if args.tasks is None:
        raise UserError("No task: give --tasks, for example --tasks df_pope (--tasks list names all).")
    if args.limit == 0:
        raise UserError(
            "--limit 0 leaves no question (the host would run them all): give a number of questions "
            "per task, 1 or more, a share below 1, or leave it out."
        )
    _check_names(args)
    if args.model.startswith(OUR_MODELS):
        _check_generation(args.gen_kwargs)


def _check_names(args: Any) -> None:
    """UserError for a model or a task that is none of those that are known, and close to one of ours."""
    from lmms_eval.models import list_available_models

    models = list_available_models(include_aliases=True)
    if args.model not in models and (hint := did_you_mean(args.model, filter(_is_ours, models))):
        ours = ", ".join(sorted(filter(_is_ours, models)))
        raise UserError(f"Unknown model {args.model!r}.{hint} Those of DualFocus are {ours}.")
    if args.include_path is not None:
        return
    for task in map(str.strip, args.tasks.split(",")):
        if task.startswith(OUR_PREFIX) and "*" not in task and task not in task_names():
            raise UserError(
                f"Unknown task {task!r}.{did_you_mean(task, task_names())} (`dualfocus tasks` lists ours.)"
            )


def _is_ours(model: str) -> bool:
    return model.startswith(OUR_MODELS)


def _check_generation(given: str) -> None:
    """UserError for `--gen_kwargs` of another form, and for a name that has no meaning here: a misspelling
    would change nothing."""
    from lmms_eval.utils import simple_parse_args_string

    try:
        names = simple_parse_args_string(given)
    except ValueError as error:
        raise UserError(f"--gen_kwargs is name=value,name=value, got {given!r}.") from error
    for name in names:
        if name not in GENERATION_SETTINGS:
            raise choose("generation setting", name, GENERATION_SETTINGS)


@contextmanager
def _results_written(folder: str | None) -> Iterator[None]:
    """UserError before the work where nothing can be written to `--output_path`, and after it where the host
    could not write all of it."""
    if folder is None:
        yield
        return
    from loguru import logger

    writable(folder, "--output_path")
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(message.record["message"]), filter=_WRITES_RESULTS)
    try:
        yield
    finally:
        logger.remove(sink)
    failed = [place for place, text in enumerate(messages) if text.startswith("Could not save")]
    if failed:
        reasons = "; ".join(" ".join(messages[place : place + 2]) for place in failed)  # the cause comes next
        raise UserError(
            f"Not all results are in --output_path {folder}: {reasons}. Make room, or give another folder; "
            "with trace=... and resume=True nothing that was answered is answered again."
        )


@contextmanager
def _fewest_tasks(args: Any) -> Iterator[None]:
    """Only our own tasks in the host's index, where no other is requested."""
    ours = args.include_path is None and all(
        task.strip().startswith(OUR_PREFIX) for task in args.tasks.split(",")
    )
    given = os.environ.get(ONLY_OUR_TASKS)
    if ours:
        os.environ[ONLY_OUR_TASKS] = "1"
    try:
        yield
    finally:
        if ours:
            os.environ.pop(ONLY_OUR_TASKS)
            if given is not None:
                os.environ[ONLY_OUR_TASKS] = given


def _user_error(error: BaseException | None) -> BaseException:
    """The UserError or GenerationError beneath `error`, where the host wrapped one; else the error itself."""
    assert error is not None
    *_, (frame, _) = walk_tb(error.__traceback__)
    place = frame.f_code.co_name if frame.f_globals["__name__"].startswith("lmms_eval.") else ""
    if place in _CHECKS and isinstance(error, (ValueError, AssertionError)):
        return UserError(f"{error} (`dualfocus eval --help` lists all options.)")
    if place == "construct_requests" and isinstance(error, AssertionError):  # an output_type without messages
        return UserError(ONLY_GENERATE_UNTIL)
    for cause in _causes(error):
        if isinstance(cause, (UserError, GenerationError)):
            return cause
        if isinstance(cause, ConnectionError):
            return UserError(
                f"A data set or checkpoint cannot be fetched: {cause}.{_hub_page(cause)} Without a network, "
                "name local ones: DUALFOCUS_DATA=<folder of benchmark files>, with the official files that "
                "docs/benchmarks.md lists for each task, and pretrained=<folder>."
            )
    return error


def _hub_page(error: ConnectionError) -> str:
    """A sentence with the page of the data set that could not be reached, where the message names one."""
    named = re.search(r"Couldn't reach '([\w.-]+/[\w.-]+)' on the Hub", str(error))
    return f" Its page is https://huggingface.co/datasets/{named[1]}." if named else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        attempt = getattr(error, "last_attempt", None)  # tenacity's RetryError, around the host's own retries
        error = attempt.exception() if attempt is not None else error.__cause__ or error.__context__
