"""V*Bench: small things in large images, from the hub or from the official files. Options are shuffled.

The official files have an annotation beside each image, `sa_1.json` beside `sa_1.jpg`: `target_object`, the
names of what the question is about, and `bbox`, a box [x, y, width, height] in pixels of each. The hub's rows
have none.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.images import UNREADABLE, opened, unreadable
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common import pixel_boxes
from dualfocus_lmms.tasks.common.letters import letters
from dualfocus_lmms.tasks.common.official import (
    NAMES_SHOWN,
    by_environment,
    from_either,
    read_json,
    required,
    with_images,
)
from dualfocus_lmms.tasks.common.options import correct_letter, hub_row, read_choice, score, share_images
from dualfocus_lmms.tasks.common.prompts import LETTER_ANSWER
from dualfocus_lmms.tasks.common.sources import Doc, read_rows, text_field

if TYPE_CHECKING:
    from datasets import Dataset

TASK = "df_vstar"
HUB = "lmms-lab-encoder/vstar-bench"
QUESTIONS = "vstar/test_questions.jsonl"
CATEGORIES = ("direct_attributes", "relative_position")
SEED = 0  # of the options' order

log = logging.getLogger(__name__)

_LABEL = re.compile(r"\s*\(([A-Z])\)\s+")

__getattr__ = by_environment(HUB, "test")


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the questions with their options in our order, from either source, and fingerprint.

    annotated_boxes: x0, y0, x1, y1 of each thing that a question is about, as fractions of the image, where
    they are annotated. annotated_box: the region around them, else None.
    """
    return from_either(lambda: _hub_questions(dataset), read_questions)


def _hub_questions(dataset: Dataset) -> list[Doc]:
    share_images(TASK, dataset.select_columns(["image"]))
    rows = dataset.select_columns(["question_id", "text", "label", "category"])
    return [
        {**_question(row, f"{HUB}, row {number}"), **hub_row(TASK, number), **_columns([])}
        for number, row in enumerate(rows)
    ]


def read_questions(folder: Path) -> list[Doc]:
    """The questions of `<folder>/vstar/test_questions.jsonl` whose image, a path in `vstar/`, exists."""
    file = required(folder, QUESTIONS, HUB)

    def document(row: Doc, where: str) -> Doc:
        return {**_question(row, where), "image": str(file.parent / text_field(row, "image", where))}

    docs = with_images(TASK, read_rows(file, document), file.parent)
    annotated = [Path(doc["image"]).with_suffix(".json") for doc in docs]
    missing = [path.name for path in annotated if not path.is_file()]
    if 0 < len(missing) < len(docs):
        log.warning(
            "%s: %d of %d questions have no boxes, as their annotation is missing beside the image: %s",
            *(TASK, len(missing), len(docs), ", ".join(missing[:NAMES_SHOWN])),
        )
    return [
        {**doc, **_columns(read_boxes(path, Path(doc["image"])))}
        for doc, path in zip(docs, annotated, strict=True)
    ]


def read_boxes(annotation: Path, image: Path) -> list[Box]:
    """The boxes in the annotation of an image, in its order; none where one of the two files is missing."""
    if not annotation.is_file() or not image.is_file():
        return []
    content = read_json(annotation)
    names, boxes = (
        (content.get(key) for key in ("target_object", "bbox")) if isinstance(content, dict) else (0, 0)
    )
    if not isinstance(names, list) or not isinstance(boxes, list) or len(names) != len(boxes):
        raise UserError(
            f"{annotation}: 'target_object' and 'bbox' must be lists of one length: give the official file."
        )
    try:
        with opened(image) as file:
            size = file.size
    except UNREADABLE as error:
        raise unreadable(f"The image {image}", error, "get it again.") from error
    return pixel_boxes.read_boxes(boxes, size, str(annotation), "bbox", "[x, y, width, height]")


def _columns(boxes: list[Box]) -> Doc:
    return {"annotated_box": pixel_boxes.around(boxes), "annotated_boxes": pixel_boxes.corners(boxes)}


def _question(row: Doc, where: str) -> Doc:
    question, options = read_options(text_field(row, "text", where), where)
    answer = options[letters(options).index(correct_letter(row.get("label"), options, where))]
    number, category = str(row.get("question_id", "")), row.get("category")
    if category not in CATEGORIES:
        raise choose(f"category in {where}", category, CATEGORIES)
    shuffled = shuffle(options, number)
    return {
        "question_id": number,
        "question": question,
        "options": shuffled,
        "answer": letters(shuffled)[shuffled.index(answer)],
        "category": category,
    }


def read_options(text: str, where: str) -> tuple[str, list[str]]:
    """(question, options) of "What is it?\\n(A) a cat\\n(B) a dog\\nAnswer with the option's letter ..."."""
    question, *rest = _LABEL.split(text.removesuffix(LETTER_ANSWER).rstrip())
    labels, options = rest[::2], rest[1::2]
    if len(options) < 2 or "".join(labels) != letters(options) or len(set(options)) < len(options):
        raise UserError(
            f"{where}: 'text' must be a question and options (A), (B), ... that differ, got {text!r}."
        )
    return question.strip(), options


def shuffle(options: Sequence[str], question_id: str) -> list[str]:
    """The options in an order that SEED and the question's id decide."""
    shuffled = list(options)
    Random(f"{SEED}:{question_id}").shuffle(shuffled)
    return shuffled


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy, over all and in its category, and to the letters' shares."""
    choice = read_choice(doc, results[0])
    points = score(choice["said"] == choice["right"])
    return {
        "accuracy": points,
        doc["category"]: points,
        "letter_bias": choice,
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }
