"""df_gqa: GQA's testdev_balanced questions with open answers, from the hub or from the official files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.tasks.common import official, sources
from dualfocus_lmms.tasks.common.sources import Doc, images_needed, text_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "lmms-lab-encoder/GQA"
HUB_IMAGES = "testdev_balanced_images"
SPLIT = "testdev"
QUESTIONS = "gqa/testdev_balanced_questions.json"
IMAGES = "gqa/images"
COLUMNS = ("id", "imageId", "question", "answer", "types")
# The official evaluator's accuracyPerStructuralType and accuracyPerSemanticType.
TYPES = {
    "structural": ("choose", "compare", "logical", "query", "verify"),
    "semantic": ("attr", "cat", "global", "obj", "rel"),
}

__getattr__ = official.by_environment(HUB, SPLIT)


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: question_id, image_id, question, answer, structural, semantic, questions_without_image.

    The questions' fingerprint, too. From files, image is the image's path; from the hub, the images stay
    in a data set of their own.
    """
    return official.from_either(lambda: _hub_questions(dataset.select_columns(list(COLUMNS))), read_questions)


def read_questions(folder: Path) -> list[Doc]:
    """The questions of gqa/testdev_balanced_questions.json whose image is gqa/images/<imageId>.jpg."""
    file, images = official.required(folder, QUESTIONS, HUB), official.image_folder(folder, IMAGES, HUB)
    questions = official.read_json(file)
    if not isinstance(questions, dict) or not questions:
        raise UserError(
            f"{file}: a JSON object of questions by their id is expected: give the official file."
        )
    docs = [_document(row, key, f"{file}, question {key!r}") for key, row in questions.items()]
    docs = [{**doc, "image": str(images / f"{doc['image_id']}.jpg")} for doc in docs]
    return official.with_images("df_gqa", docs, images)


def _hub_questions(rows: Dataset) -> list[Doc]:
    docs = [_document(row, row["id"], f"{HUB}, question {row['id']!r}") for row in rows]
    if images_needed() and (lost := {doc["image_id"] for doc in docs} - _hub_images()[1].keys()):
        raise UserError(
            f"{HUB} ({HUB_IMAGES}) lacks {len(lost)} images, such as {min(lost)}: download it again."
        )
    return [{**doc, "questions_without_image": 0} for doc in docs]


def _document(row: Any, question_id: str, where: str) -> Doc:
    types = row.get("types") if isinstance(row, dict) else None
    if not isinstance(types, dict) or any(types.get(kind) not in known for kind, known in TYPES.items()):
        raise UserError(
            f"{where}: 'types' must hold a structural and a semantic type out of {TYPES}, got {types!r}."
        )
    return {
        "question_id": question_id,
        "image_id": text_field(row, "imageId", where),
        "question": text_field(row, "question", where),
        "answer": text_field(row, "answer", where),
        **{kind: types[kind] for kind in TYPES},
    }


def images(doc: Doc) -> list[Image.Image]:
    """`doc_to_visual`: the document's one image, upright and RGB."""
    if "image" in doc:
        return sources.images(doc)
    rows, positions = _hub_images()
    return sources.images(rows[positions[doc["image_id"]]])


@cache
def _hub_images() -> tuple[Dataset, dict[str, int]]:
    """The hub's images, and the row of each image id. 398 images serve 12,578 questions."""
    from datasets import load_dataset

    folder = os.environ.get("LMMS_EVAL_DATASETS_CACHE", "").strip() or None  # as the host does
    rows = load_dataset(HUB, HUB_IMAGES, split=SPLIT, cache_dir=folder)
    return rows, {name: row for row, name in enumerate(rows["id"])}


def prompt(doc: Doc) -> str:
    """The question and LLaVA's short-answer instruction."""
    return f"{usable(doc)['question']}\n{SHORT_ANSWER}"


# --- scores ------------------------------------------------------------------------------------------------


def is_correct(reply: str, answer: str) -> bool:
    """Whether a reply in small letters, without full stops at its end, is the answer to the character.

    That is LLaVA's convert_gqa_for_eval.py followed by GQA's own eval.py.
    """
    return reply.strip().rstrip(".").lower() == answer


def gqa_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy, over all and for the question's two types."""
    score = 100.0 if is_correct(results[0], doc["answer"]) else 0.0
    return {
        "accuracy": score,
        **{f"{kind}_{doc[kind]}": score for kind in TYPES},
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }
