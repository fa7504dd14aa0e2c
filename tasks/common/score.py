"""`dualfocus score`: answers that something else gave, scored with the code of a task. No image is needed.

    dualfocus score --task df_pope_random --answers answers.jsonl

Nothing here knows a benchmark: the task's own YAML says how documents are read and replies are scored.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from dualfocus_lmms._version import __version__
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.integrity import fingerprint, questions_fingerprint
from dualfocus_lmms.tasks.common.scoring import NO_ANSWER
from dualfocus_lmms.tasks.common.sources import Doc, read_json_lines, without_images

if TYPE_CHECKING:
    from datasets import Dataset
    from lmms_eval.api.task import ConfigurableTask

FOLDER = Path(__file__).parents[1]
ID_COLUMNS = ("index", "question_id", "id")  # of a task's documents; the first that is there
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
    """What a file of answers is worth.

    questions: of the task, each of which counts. missing: ids of those without an answer, which are wrong.
    questions_fingerprint: see `integrity`. answers_fingerprint: of ids and answers, in the order
    of the questions.
    """

    task: str
    version: str
    answers: str
    questions: int
    missing: tuple[str, ...]
    questions_fingerprint: str
    answers_fingerprint: str
    metrics: tuple[Metric, ...]

    def markdown(self) -> str:
        """The scores as a table, and below it what they were computed from."""
        rows = [
            [self.task, metric.name, f"{metric.value:.2f}", _number(metric.error), str(metric.samples)]
            for metric in self.metrics
        ]
        headers = ["task", "metric", "value", "standard error", "n"]
        aligned = ("left", "left", "right", "right", "right")
        table = tabulate(rows, headers, tablefmt="github", colalign=aligned, disable_numparse=True)
        return (
            f"{table}\n\nQuestions: {self.questions}, fingerprint {self.questions_fingerprint}, "
            f"version {self.version} of the task\n"
            f"Answers: {self.answers}, fingerprint {self.answers_fingerprint}; "
            f"missing: {len(self.missing)}{_some(self.missing)}{' (wrong)' if self.missing else ''}"
        )

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, with the versions of this package and of lmms-eval."""
        versions = {"dualfocus_lmms": __version__, "lmms_eval": version("lmms_eval")}
        text = json.dumps({**asdict(self), "versions": versions}, indent=2, ensure_ascii=False)
        try:
            atomic_write(path, text + "\n")
        except OSError as error:
            raise UserError(f"Cannot write the scores to {path}: {error}. Give another file.") from error


def _number(error: float | None) -> str:
    return "-" if error is None else f"{error:.2f}"


def _some(ids: Sequence[str]) -> str:
    """The first ids after a colon; nothing when there is none."""
    shown = ", ".join(ids[:NAMES_SHOWN]) + (", ..." if len(ids) > NAMES_SHOWN else "")
    return f": {shown}" if ids else ""


def score(task: str, answers: str | Path, include_path: str | None = None) -> Scores:
    """Score a file of answers (see `read_answers`) with one of our tasks, or of those in `include_path`."""
    replies = read_answers(Path(answers))
    loaded = load_task(task, include_path)
    docs = loaded.eval_docs_no_media
    ids = _ids(docs, task)
    if unknown := [key for key in replies if key not in set(ids)]:
        raise UserError(
            f"{answers} answers {len(unknown)} questions that {task} does not ask{_some(unknown)}. It asks "
            f"{len(ids)}{_some(ids)}. Keep its own answers, under its own ids."
        )
    return Scores(
        task=task,
        version=str(loaded.VERSION),
        answers=Path(answers).name,
        questions=len(ids),
        missing=tuple(key for key in ids if key not in replies),
        questions_fingerprint=questions_fingerprint(docs),
        answers_fingerprint=fingerprint([key, replies.get(key)] for key in ids),
        metrics=tuple(aggregate(task, loaded, docs, [replies.get(key) for key in ids])),
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
        raise UserError(f"{file} answers {len(twice)} questions twice{_some(twice)}. Keep one answer each.")
    if not pairs:
        raise UserError(f"{file} holds no answer: give at least one.")
    return dict(pairs)


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for where, row in read_json_lines(file):
        yield _id(row.get("question_id"), "question_id", where), _text(row.get("text"), "text", where)


def _sheet(file: Path) -> Iterator[tuple[str, str]]:
    from zipfile import BadZipFile

    import pandas

    try:
        table = pandas.read_excel(file, dtype=object, keep_default_na=False)
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}): give an Excel file (.xlsx).") from error
    if lacking := [name for name in ("index", "prediction") if name not in table.columns]:
        raise UserError(f"{file} has no column {' and no column '.join(lacking)}: both are needed.")
    for number, (key, reply) in enumerate(zip(table["index"], table["prediction"], strict=True), start=2):
        where = f"{file}, row {number}"
        yield _id(key, "index", where), str(reply)  # a cell may hold a number


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
    """A task with all of its questions, whether their images are there or not; with `images` only with those
    that a run asks here: an image that is missing leaves its question out."""
    from lmms_eval.tasks import TaskManager, get_task_dict
    from tenacity import RetryError

    folders = [str(FOLDER), *([include_path] if include_path else [])]
    manager = TaskManager(include_defaults=False, include_path=folders)
    known = sorted(manager.all_subtasks)
    if name in manager.all_groups:
        raise UserError(f"{name} is a group: score its tasks one by one. All tasks: {', '.join(known)}.")
    if name not in known:
        raise choose("task", name, known)
    try:
        with nullcontext() if images else without_images():
            return get_task_dict([name], manager)[name]
    except RetryError as error:  # the host tries five times to load a data set
        cause = error.last_attempt.exception()
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"The questions of {name} cannot be loaded: {cause}. Without a network, set DUALFOCUS_DATA to a "
            "folder of benchmark files."
        ) from error


def _ids(docs: Dataset, task: str) -> list[str]:
    """The id of every document: that of its benchmark, else its place, from 0 as the host's doc_id."""
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
    from lmms_eval.evaluator_utils import TaskOutput, consolidate_results

    output = TaskOutput.from_taskdict(name, task)
    for doc, reply in zip(docs, replies, strict=True):
        for metric, value in _contributions(task, doc, reply).items():
            output.sample_metrics[metric, "none"].append(value)
    output.calculate_aggregate_metric()
    results = consolidate_results([output])[0][name]
    for (metric, _), values in output.sample_metrics.items():
        value, error = results[f"{metric},none"], results[f"{metric}_stderr,none"]
        if not metric.endswith("_stderr") and isinstance(value, (int, float)):
            yield Metric(metric, value, float(error) if isinstance(error, float) else None, len(values))


def _contributions(task: ConfigurableTask, doc: Doc, reply: str | None) -> dict[str, Any]:
    if reply is not None:
        return task.process_results(doc, [reply])
    return task.config.process_results(doc, [NO_ANSWER])  # the host would make a plain text of it
