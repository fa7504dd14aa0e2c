"""`dualfocus score`: answers from elsewhere, scored with the code of a task. No image is needed.

    dualfocus score --task df_pope_random --answers answers.jsonl

Groups are in `score_group`. Nothing here knows a benchmark: the task's own YAML says how documents are read
and replies are scored.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from dualfocus_lmms._version import __version__
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.files import save_text
from dualfocus_lmms.imports import large_imports, without_pipelines
from dualfocus_lmms.integrity import fingerprint, questions_fingerprint
from dualfocus_lmms.tasks.common.scoring import NO_ANSWER
from dualfocus_lmms.tasks.common.sheets import columns, read_sheet
from dualfocus_lmms.tasks.common.sources import (
    DATA,
    Doc,
    given_file,
    named_path,
    read_rows,
    without_images,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.tasks import TaskManager

FOLDER = Path(__file__).parents[1]
ID_COLUMNS = ("index", "question_id", "id")  # of a task's documents; the first that exists
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Metric:
    """The score of `samples` documents, and its standard error in the same unit; None where there is none."""

    name: str
    value: float
    error: float | None
    samples: int


@dataclass(frozen=True)
class Scores:
    """The scores of a file of answers.

    questions: of the task, each of which counts. missing: ids of those without an answer, which are wrong.
    questions_fingerprint: see `integrity`. answers_fingerprint: of ids and answers, in the order
    of the questions. own_questions: whether questions and correct answers come from the file of answers.
    """

    task: str
    version: str
    answers: str
    questions: int
    missing: tuple[str, ...]
    questions_fingerprint: str
    answers_fingerprint: str
    metrics: tuple[Metric, ...]
    own_questions: bool = False

    def markdown(self) -> str:
        """The scores as a table, and below it what they were computed from."""
        return f"{scores_table([(self.task, self.metrics)])}\n\n{self.sources()}"

    def sources(self) -> str:
        """What the scores were computed from, in two lines."""
        return (
            f"Questions: {self.questions}, fingerprint {self.questions_fingerprint}, "
            f"version {self.version} of the task{', from the answers file' if self.own_questions else ''}\n"
            f"Answers: {self.answers}, fingerprint {self.answers_fingerprint}; "
            f"missing: {len(self.missing)}{shorten(self.missing)}{' (wrong)' if self.missing else ''}"
        )

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, with the versions of this package and of lmms-eval."""
        save_scores(asdict(self), path)


def scores_table(scores: Iterable[tuple[str, Iterable[Metric]]]) -> str:
    """The metrics of tasks, each with its name, as Markdown."""
    rows = [
        [task, metric.name, f"{metric.value:.2f}", _number(metric.error), str(metric.samples)]
        for task, metrics in scores
        for metric in metrics
    ]
    headers = ["task", "metric", "value", "standard error", "n"]
    aligned = ("left", "left", "right", "right", "right")
    return tabulate(rows, headers, tablefmt="github", colalign=aligned, disable_numparse=True)


def save_scores(scores: dict[str, Any], path: str | Path) -> None:
    """Write the fields of scores as JSON, with the versions of this package and of lmms-eval."""
    versions = {"dualfocus_lmms": __version__, "lmms_eval": version("lmms_eval")}
    text = json.dumps({**scores, "versions": versions}, indent=2, ensure_ascii=False)
    save_text(path, text + "\n", "scores")


def _number(error: float | None) -> str:
    return "-" if error is None else f"{error:.2f}"


def shorten(ids: Sequence[str]) -> str:
    """The first ids after a colon; nothing when there is none."""
    listed = ", ".join(ids[:NAMES_SHOWN]) + (", ..." if len(ids) > NAMES_SHOWN else "")
    return f": {listed}" if ids else ""


def score(task: str, answers: str | Path, include_path: str | None = None) -> Scores:
    """Score a file of answers (see `read_answers`) with one of our tasks, or of those in `include_path`.

    An Excel file that holds the correct answers too brings its own questions, where the task can read them
    (`sources.given_file`) and DUALFOCUS_DATA names no others.
    """
    replies = read_answers(Path(answers))
    own = named_path(DATA) is None and Path(answers).suffix.lower() == ".xlsx" and holds_truth(Path(answers))
    with given_file(Path(answers) if own else None) as given:
        loaded = load_task(task, include_path)
    ids = document_ids(loaded.eval_docs_no_media, task)
    known = set(ids)
    if unknown := [key for key in replies if key not in known]:
        raise UserError(
            f"{answers} answers {len(unknown)} questions that {task} does not ask{shorten(unknown)}. It asks "
            f"{len(ids)}{shorten(ids)}. Keep its own answers, under its own ids."
        )
    own_questions = given is not None and given.used
    return score_replies(task, loaded, answers, [replies.get(key) for key in ids], own_questions)


def score_replies(
    name: str,
    task: ConfigurableTask,
    answers: str | Path,
    replies: Sequence[str | None],
    own_questions: bool = False,
) -> Scores:
    """The scores of replies, in the order of a task's questions, None for no reply. answers: their file."""
    docs = task.eval_docs_no_media
    ids = document_ids(docs, name)
    return Scores(
        task=name,
        version=str(task.VERSION),
        answers=Path(answers).name,
        questions=len(ids),
        missing=tuple(key for key, reply in zip(ids, replies, strict=True) if reply is None),
        questions_fingerprint=questions_fingerprint(docs),
        answers_fingerprint=fingerprint([key, reply] for key, reply in zip(ids, replies, strict=True)),
        metrics=tuple(aggregate(name, task, docs, replies)),
        own_questions=own_questions,
    )


# --- the answers -------------------------------------------------------------------------------------------


def read_answers(file: Path) -> dict[str, str]:
    """Replies by question id, as text, of a file in the form its name ends with.

    .xlsx: a sheet with the columns index and prediction, as submissions to MMBench. Any other: JSON lines
    with question_id (a text or a whole number) and text, as LLaVA's answer files. UserError for what cannot
    be read so, and for an id that comes twice.
    """
    if not file.is_file():
        raise UserError(f"No answers at {file}: give a .jsonl file (question_id, text) or an .xlsx file.")
    pairs = list(_sheet(file) if file.suffix.lower() == ".xlsx" else _lines(file))
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise UserError(f"{file} answers {len(twice)} questions twice{shorten(twice)}. Keep one answer each.")
    if not pairs:
        raise UserError(f"{file} holds no answer: give at least one.")
    return dict(pairs)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    yield from read_rows(
        file,
        lambda row, where: (
            _id(row.get("question_id"), "question_id", where),
            _text(row.get("text"), "text", where),
        ),
    )


def _sheet(file: Path) -> Iterator[tuple[str, str]]:
    names = columns(file)
    if missing := [name for name in ("index", "prediction") if name not in names]:
        raise UserError(f"{file} has no column {' and no column '.join(missing)}: both are needed.")
    for number, row in enumerate(read_sheet(file), start=2):
        where = f"{file}, row {number}"
        yield _id(row["index"], "index", where), str(row["prediction"])  # a cell may hold a number


def holds_truth(file: Path) -> bool:
    """Whether an Excel file has the correct answers and the options too, as submissions to MMBench may."""
    return {"answer", "A", "B"} <= set(columns(file))


def _id(value: Any, name: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise UserError(f"{where}: {name!r} must be a text or a whole number, got {value!r}.")
    return str(value).strip()


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {name!r} must be a text (it may be empty), got {value!r}.")
    return value


# --- the task ----------------------------------------------------------------------------------------------


def load_task(name: str, include_path: str | None = None, images: bool = False) -> ConfigurableTask:
    """A task with all of its questions, whether their images exist or not; with `images` only with those
    that a run would ask: a question whose image is missing is left out. UserError for a group."""
    manager = task_manager(include_path)
    if name in manager.all_groups:
        known = ", ".join(sorted(manager.all_subtasks))
        raise UserError(f"{name} is a group: give its tasks one by one. All tasks: {known}.")
    return load(name, include_path, images)[name]


def task_manager(include_path: str | None = None) -> TaskManager:
    """The host's, which knows our tasks and those in a folder. It reads all of their YAML files, so it is
    kept for as long as no file changes."""
    folders = (str(FOLDER), *([include_path] if include_path else []))
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.yaml"))]
    return _task_manager(folders, tuple((str(file), file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=1)
def _task_manager(folders: tuple[str, ...], files: tuple[tuple[str, int], ...]) -> TaskManager:
    with large_imports(), without_pipelines():
        from lmms_eval.tasks import TaskManager

    return TaskManager(include_defaults=False, include_path=list(folders))


def load(name: str, include_path: str | None = None, images: bool = False) -> dict[Any, Any]:
    """The host's tree of a task or a group: tasks by name, below the group that they are in."""
    from lmms_eval.tasks import get_task_dict
    from tenacity import RetryError

    manager = task_manager(include_path)
    if name not in manager.all_groups and name not in manager.all_subtasks:
        raise choose("task", name, sorted([*manager.all_subtasks, *manager.all_groups]))
    try:
        with nullcontext() if images else without_images():
            return get_task_dict([name], manager)
    except RetryError as error:  # the host tries five times to load a data set
        cause = error.last_attempt.exception()
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"The questions of {name} cannot be loaded: {cause}. Without a network, set DUALFOCUS_DATA to a "
            "folder of benchmark files."
        ) from error


def document_ids(docs: Dataset, task: str) -> list[str]:
    """The id of every document: that of its benchmark, else its index, from 0 as the host's doc_id."""
    column = next((name for name in ID_COLUMNS if name in docs.column_names), None)
    ids = [str(key) for key in (range(len(docs)) if column is None else docs[column])]
    if len(set(ids)) < len(ids):
        raise UserError(
            f"The questions of {task} cannot be told apart by {column!r}: no answers can be matched."
        )
    return ids


def aggregate(
    name: str, task: ConfigurableTask, docs: Dataset, replies: Sequence[str | None]
) -> Iterator[Metric]:
    """The task's metrics, aggregated by the host itself."""
    results, _ = host_results([(name, task, docs, replies)])
    own = results[name]
    for key, value in own.items():
        metric, _, kind = key.partition(",")
        error = own.get(f"{metric}_stderr,none")
        is_metric = kind == "none" and metric in own["counts"] and not metric.endswith("_stderr")
        if is_metric and isinstance(value, (int, float)):
            yield Metric(
                metric, value, float(error) if isinstance(error, float) else None, own["counts"][metric]
            )


def host_results(
    answered: Iterable[tuple[str, ConfigurableTask, Dataset, Sequence[str | None]]],
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The host's results and versions of tasks with their replies, by task; in the results also `counts`, how
    many answers each metric has."""
    from lmms_eval.evaluator_utils import TaskOutput, consolidate_results

    outputs = {}
    for name, task, docs, replies in answered:
        output = outputs[name] = TaskOutput.from_taskdict(name, task)
        for doc, reply in zip(docs, replies, strict=True):
            for metric, value in _contributions(task, doc, reply).items():
                output.sample_metrics[metric, "none"].append(value)
        output.calculate_aggregate_metric()
    results, _, _, versions, *_ = consolidate_results(list(outputs.values()))
    for name, output in outputs.items():
        counts = {metric: len(values) for (metric, _), values in output.sample_metrics.items()}
        results[name]["counts"] = counts
    return results, versions


def process_results(task: ConfigurableTask, doc: Doc, reply: str) -> dict[str, Any]:
    """What the task's metrics say of a reply: the host's method, without its five attempts, which take longer
    than the work and hide an error."""
    own = type(task).process_results
    return getattr(own, "__wrapped__", own)(task, doc, [reply])


def _contributions(task: ConfigurableTask, doc: Doc, reply: str | None) -> dict[str, Any]:
    if reply is not None:
        return process_results(task, doc, reply)
    return task.config.process_results(doc, [NO_ANSWER])  # the host would convert it to a plain text
