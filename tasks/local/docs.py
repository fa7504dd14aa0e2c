"""df_local: questions of the user's own: JSON lines, JSON or CSV of {image, question, answer[, options]}."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, is_address, open_image, unreadable
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.tasks.common.letters import letters, normalise
from dualfocus_lmms.tasks.common.prompts import LETTER_ANSWER, option_lines
from dualfocus_lmms.tasks.common.sources import (
    LOCAL,
    Doc,
    build_dataset,
    each_row,
    images_needed,
    named_path,
    placeholder,
    read_rows,
    refuse,
    text_field,
    usable,
)

if TYPE_CHECKING:
    from datasets import Dataset

DATASET_KWARGS = placeholder("test")
MOST_OPTIONS = 26
_READERS = 4  # threads that open images


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the user's questions in the place of the placeholder."""
    return build_dataset(lambda: each_question(named_path(LOCAL)))


def read_questions(file: Path | None) -> list[Doc]:
    """`each_question` as a list."""
    return list(each_question(file))


def each_question(file: Path | None) -> Iterator[Doc]:
    """The documents of a file: image (absolute path), question, options (may be empty), answers.

    answers: the accepted texts, or the letters of the correct options where there are options.
    """
    if file is None:
        raise UserError(
            f"df_local asks questions of your own: set {LOCAL} to a file with one JSON object a line, "
            '{"image": ..., "question": ..., "answer": ..., "options": [...]}, a JSON array of such objects, '
            "or a .csv with these columns; the options may be left out."
        )
    if not file.is_file():
        raise UserError(f"{LOCAL} is {str(file)!r}, which is no file: give a file of questions.")
    questions = each_row(file, lambda row, where: _document(row, file.parent, where))
    first = next(questions, None)
    if first is None:
        raise _no_question(file)
    yield first
    yield from questions


def check(limit: int | None = None) -> None:
    """Look at the user's questions before a model is loaded. UserError that names every bad line of the file,
    or every image that cannot be read, of the first `limit` questions."""
    file = named_path(LOCAL)
    if file is None or not file.is_file():
        read_questions(file)  # says what is missing
        return
    first = {doc["image"]: where for where, doc in reversed(_read(file)[:limit])}
    with ThreadPoolExecutor(_READERS) as pool:
        faults = pool.map(lambda image: _image_fault(image, first[image]), reversed(first))
        refuse(file, [fault for fault in faults if fault is not None])


def _image_fault(image: str, where: str) -> str | None:
    try:
        open_image(image)
    except UNREADABLE as error:
        return str(unreadable(f"{where}: the image {image}", error, "replace it or remove its question."))
    return None


def _read(file: Path) -> list[tuple[str, Doc]]:
    """The documents of a file, each with its place."""
    rows = read_rows(file, lambda row, where: (where, _document(row, file.parent, where)))
    if not rows:
        raise _no_question(file)
    return rows


def _no_question(file: Path) -> UserError:
    return UserError(f"{file} holds no question: give at least one line.")


def _document(row: Doc, folder: Path, where: str) -> Doc:
    _no_address(text_field(row, "image", where), where)
    image = folder / Path(text_field(row, "image", where)).expanduser()
    if images_needed() and not os.path.isfile(image):
        raise UserError(f"{where}: the image {image} does not exist (paths start at the file's own folder).")
    options = _options(row, where)
    answers = _answers(row, where)
    return {
        "image": sys.intern(str(image)),  # several questions share one
        "question": text_field(row, "question", where),
        "options": options,
        "answers": [_letter(answer, options, where) for answer in answers] if options else answers,
    }


def _no_address(image: str, where: str) -> None:
    if is_address(image):
        raise UserError(f"{where}: the image {image} is a web address, and nothing is fetched: give a file.")


def _options(row: Doc, where: str) -> list[str]:
    options = row.get("options", [])
    if options == []:
        return []
    if isinstance(options, list) and len(options) == 1:
        raise UserError(
            f"{where}: the only option, {options[0]!r}, leaves nothing to choose: leave 'options' out."
        )
    if isinstance(options, list) and len(options) > MOST_OPTIONS:
        raise UserError(
            f"{where}: {len(options)} options, and they are named by letters, A to Z: give {MOST_OPTIONS} or "
            "fewer, or leave 'options' out and have the answer written."
        )
    if not isinstance(options, list) or not 2 <= len(options) <= MOST_OPTIONS or not _are_texts(options):
        raise UserError(f"{where}: 'options' must be a list of 2 to {MOST_OPTIONS} texts, got {options!r}.")
    if len({normalise(option) for option in options}) < len(options):
        raise UserError(f"{where}: two of the options read the same, {options!r}: make them differ.")
    return options


def _answers(row: Doc, where: str) -> list[str]:
    answers = row.get("answer")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not _are_texts(answers):
        raise UserError(f"{where}: 'answer' must be a text or a list of texts, got {row.get('answer')!r}.")
    return answers


def _are_texts(values: list[object]) -> bool:
    """Whether all are texts that hold more than punctuation."""
    return all(isinstance(value, str) and normalise(value) for value in values)


def _letter(answer: str, options: list[str], where: str) -> str:
    texts = [normalise(option) for option in options]
    if normalise(answer) in texts:
        return letters(options)[texts.index(normalise(answer))]
    if answer in tuple(letters(options)):
        return answer
    raise UserError(
        f"{where}: the answer {answer!r} is none of the options {options!r} and none of their letters."
    )


def prompt(doc: Doc) -> str:
    """The question, its options if it has any, and how to answer: in a word or with a letter."""
    question, options = usable(doc)["question"], doc["options"]
    if not options:
        return f"{question}\n{SHORT_ANSWER}"
    return f"{question}\n{option_lines(options)}\n{LETTER_ANSWER}"
