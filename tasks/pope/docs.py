"""POPE, "is there a ... in the image?": its three splits, from the hub or from the official files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.tasks.common.official import (
    by_environment,
    from_either,
    image_folder,
    required,
    with_images,
)
from dualfocus_lmms.tasks.common.sources import Doc, read_rows, text_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "lmms-lab-encoder/POPE"
SPLITS = ("random", "popular", "adversarial")
COLUMNS = ("question_id", "image", "question", "answer")
IMAGES = "pope/images"

__getattr__ = by_environment(HUB, *SPLITS)


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: either source with COLUMNS, questions_without_image and the questions' fingerprint."""
    split = str(dataset.split)
    return from_either(lambda: _hub_questions(dataset), lambda folder: read_split(folder, split))


def _hub_questions(dataset: Dataset) -> Dataset:
    docs = dataset.select_columns(list(COLUMNS))
    return docs.add_column("questions_without_image", [0] * len(docs))


def read_split(folder: Path, split: str) -> list[Doc]:
    """The questions of `<folder>/pope/coco_pope_<split>.json` whose image is in `<folder>/pope/images/`."""
    file = required(folder, f"pope/coco_pope_{split}.json", HUB)
    images = image_folder(folder, IMAGES, HUB)
    docs = read_rows(file, lambda row, where: _document(row, images, where))
    return with_images(f"df_pope_{split}", docs, images)


def _document(row: Doc, images: Path, where: str) -> Doc:
    answer = text_field(row, "label", where).lower()
    if answer not in ("yes", "no"):
        raise UserError(f"{where}: 'label' must be yes or no, got {row['label']!r}.")
    return {
        "question_id": str(row.get("question_id", "")),
        "image": str(images / text_field(row, "image", where)),
        "question": text_field(row, "text", where),
        "answer": answer,
    }


def prompt(doc: Doc) -> str:
    """The question and LLaVA's short-answer instruction."""
    return f"{usable(doc)['question'].strip()}\n{SHORT_ANSWER}"
