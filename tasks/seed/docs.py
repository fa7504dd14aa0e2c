"""SEED-Bench, questions about single images: dimensions 1 to 9, from the hub or from the official files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common.official import (
    by_environment,
    from_either,
    image_folder,
    read_json,
    required,
    with_images,
)
from dualfocus_lmms.tasks.common.options import correct_letter, hub_row, read_choice, score, share_images
from dualfocus_lmms.tasks.common.sources import Doc, text_field

if TYPE_CHECKING:
    from datasets import Dataset

TASK = "df_seed_image"
HUB = "lmms-lab-encoder/SEED-Bench"
QUESTIONS, IMAGES = "seed/SEED-Bench.json", "seed/SEED-Bench-image"
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
# The benchmark's "question_type" of single images, 1 to 9 in this order.
DIMENSIONS = (
    "Scene Understanding",
    "Instance Identity",
    "Instance Attributes",
    "Instance Location",
    "Instances Counting",
    "Spatial Relation",
    "Instance Interaction",
    "Visual Reasoning",
    "Text Understanding",
)

__getattr__ = by_environment(HUB, "test")


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the questions about single images, from either source, and their fingerprint."""
    return from_either(lambda: _hub_questions(dataset), read_questions)


def _hub_questions(dataset: Dataset) -> list[Doc]:
    share_images(TASK, dataset.select_columns(["image"]))
    rows = dataset.select_columns(["question_id", "question", *CHOICES, "answer", "question_type_id"])
    return [
        {**_question(row, f"{HUB}, row {number}"), **hub_row(TASK, number)}
        for number, (row, kind) in enumerate(zip(rows, dataset["data_type"], strict=True))
        if kind == "image"
    ]


def read_questions(folder: Path) -> list[Doc]:
    """The image questions of `<folder>/seed/SEED-Bench.json` whose image is in `seed/SEED-Bench-image/`.

    Image files are named by data_id, as the official archive has them: mostly without an extension.
    """
    file, images = required(folder, QUESTIONS, HUB), image_folder(folder, IMAGES, HUB)
    docs = [
        {**_question(row, where), "image": str(images / text_field(row, "data_id", where))}
        for where, row in _rows(file)
        if row.get("data_type") == "image"
    ]
    return with_images(TASK, docs, images)


def _rows(file: Path) -> list[tuple[str, Doc]]:
    content = read_json(file)
    rows = content.get("questions") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(
            f'{file} must hold {{"questions": [{{...}}, ...]}}: give the official SEED-Bench.json.'
        )
    return [(f"{file}: question {row.get('question_id', number)}", row) for number, row in enumerate(rows)]


def _question(row: Doc, where: str) -> Doc:
    missing = [name for name in CHOICES if row.get(name) is None]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} is missing. Give the official SEED-Bench.json.")
    options = [str(row[name]) for name in CHOICES]
    return {
        "question_id": str(row.get("question_id", "")),
        "question": text_field(row, "question", where),
        "options": options,
        "answer": correct_letter(row.get("answer"), options, where),
        "dimension": _dimension(row.get("question_type_id"), where),
    }


def _dimension(number: Any, where: str) -> str:
    try:
        index = int(number) - 1
    except (TypeError, ValueError, OverflowError):
        index = -1
    if not 0 <= index < len(DIMENSIONS):
        raise UserError(f"{where}: 'question_type_id' of an image must be 1 to 9, got {number!r}.")
    return DIMENSIONS[index]


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy, over all and in its dimension."""
    choice = read_choice(doc, results[0])
    points = score(choice["said"] == choice["right"])
    return {
        "accuracy": points,
        metric(doc["dimension"]): points,
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def metric(dimension: str) -> str:
    """A dimension's name as a metric: "Scene Understanding" is "scene_understanding"."""
    return dimension.lower().replace(" ", "_")
