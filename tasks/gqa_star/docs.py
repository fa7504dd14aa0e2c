"""GQA*: GQA's testdev-balanced questions as multiple choice, from the hub or from files.

The published file has question_id, image and question, the options below it, and no answers: those, and the
types of questions, are in GQA's own testdev_balanced_questions.json.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common.letters import letters, read_letter
from dualfocus_lmms.tasks.common.official import (
    by_environment,
    from_either,
    image_folder,
    read_json,
    required,
    with_images,
)
from dualfocus_lmms.tasks.common.options import score
from dualfocus_lmms.tasks.common.prompts import LETTER_ANSWER
from dualfocus_lmms.tasks.common.sources import (
    DATA,
    Doc,
    images_needed,
    read_rows,
    text_field,
    usable,
)
from dualfocus_lmms.tasks.gqa import docs as gqa_docs

if TYPE_CHECKING:
    from datasets import Dataset

TASK = "df_gqa_star"
HUB = "yhcao/GQA-MCQ"
HUB_QUESTIONS = "testdev_balanced_instructions"  # of the hub's GQA, which has the answers, types and images
CHOICES = "gqa/llava_gqa_testdev_balanced_mcq.jsonl"
PUBLISHED = "published"  # the source of lines that name none

_LABEL = re.compile(r"^\s*\(?[A-Z][.):]\s*")

__getattr__ = by_environment(HUB, "train")


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the questions with GQA's answer, types and fingerprint, from either source."""
    return from_either(lambda: _hub_questions(dataset), read_questions)


def _hub_questions(dataset: Dataset) -> list[Doc]:
    try:
        known = _hub_gqa()
        rows = [(row, f"{HUB}, row {number}") for number, row in enumerate(dataset)]
        docs = [{**_question(row, known, where), **_hub_image(row, where)} for row, where in rows]
        if images_needed():
            gqa_docs.images(docs[0])  # fetches the images now, not in the middle of a run
    except ConnectionError as error:
        raise UserError(
            f"{TASK} needs the hub's {gqa_docs.HUB} besides {HUB}, and it cannot be fetched ({error}). "
            f"Without a network, set {DATA} to a folder that holds {CHOICES}, {gqa_docs.QUESTIONS} and "
            f"{gqa_docs.IMAGES}/."
        ) from error
    return docs


def _hub_gqa() -> dict[str, Doc]:
    """GQA's questions by their id, with answer and types."""
    from datasets import load_dataset

    folder = os.environ.get("LMMS_EVAL_DATASETS_CACHE", "").strip() or None  # as the host does
    rows = load_dataset(gqa_docs.HUB, HUB_QUESTIONS, split=gqa_docs.SPLIT, cache_dir=folder)
    return {row["id"]: row for row in rows.select_columns(["id", "answer", "types"])}


def _hub_image(row: Doc, where: str) -> Doc:
    """The part of a document by which `gqa_docs.images` finds its image. No image of the hub is missing."""
    return {"image_id": Path(text_field(row, "image", where)).stem, "questions_without_image": 0}


def read_questions(folder: Path) -> list[Doc]:
    """The questions of the multiple-choice file in `<folder>/gqa/` whose image is in `gqa/images/`.

    The answer and the types are those of GQA's own file beside it. Without that file each line must have its
    answer, and there are no types.
    """
    file, images = required(folder, CHOICES, HUB), image_folder(folder, gqa_docs.IMAGES, gqa_docs.HUB)
    official = folder / gqa_docs.QUESTIONS
    known = read_json(official) if official.is_file() else {}
    if not isinstance(known, dict) or not all(
        isinstance(row, dict) and isinstance(row.get("types") or {}, dict) for row in known.values()
    ):
        raise UserError(
            f"{official}: a JSON object of questions by their id is expected: give GQA's own file."
        )

    def document(row: Doc, where: str) -> Doc:
        return {**_question(row, known, where), "image": str(images / text_field(row, "image", where))}

    docs = read_rows(file, document)
    return with_images(TASK, docs, images)


def _question(row: Doc, known: Mapping[str, Doc], where: str) -> Doc:
    """known: GQA's questions by their id, with answer and types."""
    number, text = str(row.get("question_id", "")), text_field(row, "question", where)
    question, *lines = text.split("\n")
    options = [_LABEL.sub("", line).strip() for line in lines if line.strip()]
    if not options:
        raise UserError(f"{where}: 'question' must be the question and its options in lines, got {text!r}.")
    return {
        "question_id": number,
        "question": question.strip(),
        "text": text,
        "options": options,
        "answer": _answer(known.get(number, row), options, where),
        "source": row.get("source", PUBLISHED),
        **{kind: _type(known.get(number, {}), kind) for kind in gqa_docs.TYPES},
    }


def _answer(row: Doc, options: Sequence[str], where: str) -> str:
    """GQA's answer. A letter of the options, where that is what a file has, is the option's text."""
    if row.get("answer") is None:
        raise UserError(
            f"{where}: no answer is known. Put GQA's own file at {gqa_docs.QUESTIONS} under {DATA}."
        )
    answer = text_field(row, "answer", where)
    if answer in tuple(letters(options)) and answer not in options:
        return options[letters(options).index(answer)]
    return answer


def _type(row: Doc, kind: str) -> str | None:
    value = (row.get("types") or {}).get(kind)
    return value if value in gqa_docs.TYPES[kind] else None


def prompt(doc: Doc) -> str:
    """The question and options as the file has them, and LLaVA's instruction to answer with a letter."""
    return f"{usable(doc)['text']}\n{LETTER_ANSWER}"


# --- scores ------------------------------------------------------------------------------------------------


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy, over all and in its types."""
    points = score(is_correct(results[0], doc["options"], doc["answer"]))
    types = {f"{kind}_{doc[kind]}": points for kind in gqa_docs.TYPES if doc[kind] is not None}
    return {
        "accuracy": points,
        **types,
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def is_correct(reply: str, options: Sequence[str], answer: str) -> bool:
    """Whether a reply is GQA's answer, as df_gqa compares them. A letter stands for its option.

    A reply that names no option, or two, is compared itself, as the release does it.
    """
    letter = read_letter(reply, options)
    given = reply if letter is None else options[letters(options).index(letter)]
    return gqa_docs.is_correct(given, answer)
