"""GQA*: GQA's questions as multiple choice, in the form of the published file (NAME.jsonl).

    dualfocus data gqa-mcq --questions testdev_balanced_questions.json

A file grows by whole lines, and the same command adds the missing ones. Every line names its source:
scores on other distractors are scores on another benchmark.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event
from typing import BinaryIO

from tqdm import tqdm

from dualfocus_lmms.errors import Interrupted, UserError
from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.json_text import load_json
from dualfocus_lmms.tasks.common.prompts import option_lines
from dualfocus_lmms.tasks.common.sources import Doc
from dualfocus_lmms.tasks.gqa.distractors import (
    Distractors,
    GqaQuestion,
    NoDistractorsError,
    SameKind,
    named_options,
    read_questions,
)
from dualfocus_lmms.tasks.gqa.endpoint import ChatEndpoint, Spent

NAME = "llava_gqa_testdev_balanced_mcq"
GIVE_UP = 50  # failures without one success between them
_LINE_START = b'{"question_id": "'

Outcome = tuple[GqaQuestion, list[str] | NoDistractorsError]


@dataclass
class Report:
    """What one call wrote. before: lines of earlier calls; written: lines of this call.

    options: lines of the file by their number of options. failures: question id to the reason. price: of a
    million prompt and of a million completion tokens.
    """

    out: str
    source: str
    questions: int
    before: int = 0
    written: int = 0
    options: Counter[int] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    spent: Spent | None = None
    price: tuple[float, float] | None = None

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing on all lines of the file, in percent."""
        lines = self.options.total()
        return 100 * sum(count / number for number, count in self.options.items()) / lines if lines else None

    @property
    def cost(self) -> float | None:
        """What this call's tokens cost; None without prices, or when the endpoint did not count them all."""
        if self.spent is None or self.price is None or self.spent.uncounted:
            return None
        return (
            self.spent.prompt_tokens * self.price[0] + self.spent.completion_tokens * self.price[1]
        ) / 1_000_000

    def record(self) -> Doc:
        """The report as JSON holds it."""
        names = ("out", "source", "questions", "before", "written", "options", "chance", "failures", "cost")
        record = {name: getattr(self, name) for name in names}
        if self.spent is not None:
            for name in ("replies", "prompt_tokens", "completion_tokens", "uncounted"):
                record[name] = getattr(self.spent, name)
        return record

    def text(self) -> str:
        """The report in a few lines."""
        lines = [f"{self.out}: {self.written} lines written, {self.before} existed, source {self.source}"]
        if self.options:
            counts = ", ".join(f"{count} with {number}" for number, count in sorted(self.options.items()))
            lines.append(f"Options: {counts}; guessing scores {self.chance:.1f}")
        if self.spent is not None:
            lines.append(self._spent(self.spent))
        if self.failures:
            id, reason = next(iter(self.failures.items()))
            lines.append(
                f"{len(self.failures)} questions failed, such as {id}: {reason}. All are named in "
                f"{report_path(self.out)}; the same call asks only them again."
            )
        return "\n".join(lines)

    def _spent(self, spent: Spent) -> str:
        text = (
            f"Endpoint, this call: {spent.replies} replies, {spent.prompt_tokens} prompt tokens, "
            f"{spent.completion_tokens} completion tokens"
        )
        if self.cost is not None:
            text += f", cost {self.cost:.4f}"
        return text + (f"; {spent.uncounted} replies came without a count" if spent.uncounted else "")


def report_path(out: str | Path) -> Path:
    """Where the report of a file lies: beside it."""
    return Path(f"{out}.report.json")


def build(
    questions: str | Path,
    out: str | Path | None = None,
    endpoint: str | None = None,
    model: str | None = None,
    seed: int = 0,
    concurrency: int = 8,
    retries: int = 5,
    price_in: float | None = None,
    price_out: float | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> Report:
    """Write the multiple-choice file of `questions`, or go on with it; without an endpoint, offline.

    out: by default a name in the current folder that contains the source. limit: only the first questions.
    UserError when `out` holds anything but lines of this source on these questions.
    """
    if (endpoint is None) != (model is None):
        raise UserError("--endpoint and --model go together: give both, or neither for distractors offline.")
    source = source_label(model, seed)
    path = Path(out) if out is not None else default_path(source)
    price = _price(price_in, price_out, endpoint)
    all_questions = read_questions(questions)
    wanted = all_questions[:limit]
    before = read_lines(path, {question.id: question for question in all_questions}, source)
    todo = [question for question in wanted if question.id not in before]
    report = Report(
        str(path), source, len(wanted), len(before), options=Counter(before.values()), price=price
    )
    try:
        if endpoint is None or model is None:
            _write(path, _offline(todo, SameKind(all_questions, seed)), len(todo), report, seed, progress)
        else:
            with closing(ChatEndpoint(endpoint, model, retries)) as chat:
                report.spent = chat.spent
                _write(path, _from_endpoint(todo, chat, concurrency), len(todo), report, seed, progress)
        atomic_write(report_path(path), json.dumps(report.record(), indent=1) + "\n")
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{report.before + report.written} of {report.questions} questions are in {path}. Run the same "
            "command to resume with the others."
        ) from error
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error}. Its lines are complete: make room, and run the same command to "
            "resume."
        ) from error
    return report


def source_label(model: str | None, seed: int) -> str:
    """The source of the distractors, as every line has it."""
    return f"offline:seed{seed}" if model is None else f"endpoint:{model}:seed{seed}"


def default_path(source: str) -> Path:
    """A file name with the source in it."""
    return Path(f"{NAME}_{re.sub(r'[^A-Za-z0-9.]+', '-', source)}.jsonl")


def _price(
    price_in: float | None, price_out: float | None, endpoint: str | None
) -> tuple[float, float] | None:
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None or endpoint is None:
        raise UserError("--price-in and --price-out go together, and with --endpoint: give both or none.")
    return price_in, price_out


# --- the file ----------------------------------------------------------------------------------------------


def mcq_line(question: GqaQuestion, distractors: Sequence[str], source: str, seed: int) -> Doc:
    """One line of the file: the question with its options below it, in an order that seed and id decide.

    question_id, image and question are the published file's; answer (GQA's) and source are ours.
    """
    options = [question.answer, *distractors]
    Random(f"{seed}:{question.id}:order").shuffle(options)
    return {
        "question_id": question.id,
        "image": f"{question.image}.jpg",
        "question": f"{question.text}\n{option_lines(options)}",
        "answer": question.answer,
        "source": source,
    }


def read_lines(path: Path, questions: Mapping[str, GqaQuestion], source: str) -> dict[str, int]:
    """Question id to number of options of every line; an incomplete last line is removed from the file.

    UserError, and the file as it was, when a line has another source or is on none of the questions.
    """
    if not path.exists():
        return {}
    content = _content(path)
    whole = content.rfind(b"\n") + 1
    tail = content[whole:]
    if not tail.startswith(_LINE_START) and not _LINE_START.startswith(tail):
        raise UserError(f"{path} is no file that this command wrote: give --out a new name.")
    found: dict[str, int] = {}
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        id, options = _read_line(line, f"{path}:{number}", questions, source)
        found[id] = options
    if tail:
        with path.open("r+b") as file:
            file.truncate(whole)
    return found


def _read_line(line: bytes, where: str, questions: Mapping[str, GqaQuestion], source: str) -> tuple[str, int]:
    """The question's id and the number of its options."""
    try:
        row = load_json(line)
        id, text, given = row["question_id"], row["question"], row["source"]
        question, *options = text.split("\n")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where} is no line of this command ({error!r}): give --out a new name.") from error
    if given != source:
        raise UserError(
            f"{where}: the source is {given!r}, that of this call {source!r}, and a file never mixes "
            "sources: give --out a new name."
        )
    if not isinstance(id, str) or id not in questions or questions[id].text != question:
        raise UserError(f"{where}: {id!r} is none of the questions given: give --out a new name.")
    return id, len(options)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): give --out the name of a file.") from error


def _write(
    path: Path, outcomes: Iterator[Outcome], count: int, report: Report, seed: int, progress: bool
) -> None:
    """Append a line for every question with options, at once and complete; list the others as failures."""
    with _appending(path) as file, tqdm(total=count, unit="question", disable=not progress) as bar:
        for question, distractors in outcomes:
            bar.update()
            if isinstance(distractors, NoDistractorsError):
                report.failures[question.id] = str(distractors)
                continue
            line = mcq_line(question, distractors, report.source, seed)
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            file.flush()
            report.written += 1
            report.options[1 + len(distractors)] += 1


@contextmanager
def _appending(path: Path) -> Iterator[BinaryIO]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error}.") from error
    with file:
        yield file


# --- the questions -----------------------------------------------------------------------------------------


def _offline(todo: Iterable[GqaQuestion], distract: Distractors) -> Iterator[Outcome]:
    """Each question with its distractors, or with why it has none, in order."""
    for question in todo:
        try:
            yield question, named_options(question) or distract(question)
        except NoDistractorsError as error:
            yield question, error


def _from_endpoint(todo: Iterable[GqaQuestion], chat: Distractors, concurrency: int) -> Iterator[Outcome]:
    """First the questions that need no request, then the others, in the order in which replies come.

    After GIVE_UP failures in a row the rest fails without a request: the endpoint is down.
    """
    open_questions = [question for question in todo if not named_options(question)]
    open_ids = {question.id for question in open_questions}
    yield from _offline([question for question in todo if question.id not in open_ids], named_options)
    down = Event()

    def ask(question: GqaQuestion) -> Outcome:
        if down.is_set():
            return question, NoDistractorsError(
                f"not requested, {GIVE_UP} questions before it failed in a row"
            )
        try:
            return question, chat(question)
        except NoDistractorsError as error:
            return question, error
        except UserError:
            down.set()
            raise

    pool, failed = ThreadPoolExecutor(concurrency), 0
    try:
        for future in as_completed([pool.submit(ask, question) for question in open_questions]):
            outcome = future.result()
            failed = failed + 1 if isinstance(outcome[1], NoDistractorsError) else 0
            if failed == GIVE_UP:
                down.set()
            yield outcome
    finally:
        pool.shutdown(cancel_futures=True)
