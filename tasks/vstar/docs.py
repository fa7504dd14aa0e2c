"""V*Bench: small things in large images, from the hub or from the official files. Options are shuffled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common.letters import letters
from dualfocus_lmms.tasks.common.official import by_environment, from_either, required, with_images
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

_LABEL = re.compile(r"\s*\(([A-Z])\)\s+")

__getattr__ = by_environment(HUB, "test")


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the questions with their options in our order, from either source, and fingerprint."""
    return from_either(lambda: _hub_questions(dataset), read_questions)


def _hub_questions(dataset: Dataset) -> list[Doc]:
    share_images(TASK, dataset.select_columns(["image"]))
    rows = dataset.select_columns(["question_id", "text", "label", "category"])
    return [
        {**_question(row, f"{HUB}, row {number}"), **hub_row(TASK, number)} for number, row in enumerate(rows)
    ]


def read_questions(folder: Path) -> list[Doc]:
    """The questions of `<folder>/vstar/test_questions.jsonl` whose image, a path in `vstar/`, exists."""
    file = required(folder, QUESTIONS, HUB)

    def document(row: Doc, where: str) -> Doc:
        return {**_question(row, where), "image": str(file.parent / text_field(row, "image", where))}

    docs = read_rows(file, document)
    return with_images(TASK, docs, file.parent)


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
