"""df_ocrbench: OCRBench's 1,000 questions about text in images; a reply must contain an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import choose
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common import official
from dualfocus_lmms.tasks.common.options import score
from dualfocus_lmms.tasks.common.scoring import NoAnswer
from dualfocus_lmms.tasks.common.sources import Doc, text_field, texts_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

TASK = "df_ocrbench"
HUB = "echo840/OCRBench"
QUESTIONS = "ocrbench/OCRBench.json"
IMAGES = "ocrbench/OCRBench_Images"
# The benchmark's types, by the name that their score has here.
TYPES = {
    "Regular Text Recognition": "recognition",
    "Irregular Text Recognition": "recognition",
    "Artistic Text Recognition": "recognition",
    "Handwriting Recognition": "recognition",
    "Digit String Recognition": "recognition",
    "Non-Semantic Text Recognition": "recognition",
    "Scene Text-centric VQA": "scene_text",
    "Doc-oriented VQA": "document_text",
    "Key Information Extraction": "key_information",
    "Handwritten Mathematical Expression Recognition": "handwritten_math",
}

__getattr__ = official.by_environment(HUB, "test")


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: image, question, answer (texts), dataset, question_type, questions_without_image.

    The questions' fingerprint, too.
    """
    return official.from_either(lambda: _hub_questions(dataset), read_questions)


def _hub_questions(dataset: Dataset) -> Dataset:
    docs = dataset.select_columns(["image", "question", "answer", "dataset", "question_type"])
    return docs.add_column("questions_without_image", [0] * len(docs))


def read_questions(folder: Path) -> list[Doc]:
    """The questions of OCRBench.json whose image is in ocrbench/OCRBench_Images/."""
    file = official.required(folder, QUESTIONS, HUB)
    images = official.image_folder(folder, IMAGES, HUB)
    docs = []
    for number, row in enumerate(official.json_rows(file), start=1):
        where = f"{file}, question {number}"
        kind = text_field(row, "type", where)
        if kind not in TYPES:
            raise choose(f"type in {where}", kind, tuple(TYPES))
        docs.append(
            {
                "image": str(images / text_field(row, "image_path", where)),
                "question": text_field(row, "question", where),
                "answer": texts_field(row, "answers", where),
                "dataset": text_field(row, "dataset_name", where),
                "question_type": kind,
            }
        )
    return official.with_images(TASK, docs, images)


def prompt(doc: Doc) -> str:
    """The question alone: OCRBench adds no instruction."""
    question: str = usable(doc)["question"]
    return question.strip()


# --- scores ------------------------------------------------------------------------------------------------


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy, over all and of its type; 0 for NO_ANSWER."""
    points = score(not isinstance(results[0], NoAnswer) and is_correct(doc, results[0]))
    return {
        "accuracy": points,
        TYPES[doc["question_type"]]: points,
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def is_correct(doc: Doc, reply: str) -> bool:
    """Whether a reply contains an answer; blanks do not count in HME100k's formulas (lmms-eval's)."""
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results

    return bool(ocrbench_process_results(doc, [reply])["ocrbench_accuracy"]["score"])
