"""df_chartqa: ChartQA's test questions, written by people and by a program, scored by relaxed accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common import official
from dualfocus_lmms.tasks.common.options import score
from dualfocus_lmms.tasks.common.scoring import NoAnswer
from dualfocus_lmms.tasks.common.sources import Doc, text_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

TASK = "df_chartqa"
HUB = "lmms-lab-encoder/ChartQA"
FILES = {"human": "chartqa/test/test_human.json", "augmented": "chartqa/test/test_augmented.json"}
IMAGES = "chartqa/test/png"
ONE_WORD = "Answer the question with a single word."

__getattr__ = official.by_environment(HUB, "test")


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: image, question, answer, kind, questions_without_image, and the fingerprint."""
    return official.from_either(lambda: _hub_questions(dataset), read_questions)


def _hub_questions(dataset: Dataset) -> Dataset:
    docs = dataset.select_columns(["image", "question", "answer"])
    docs = docs.add_column("kind", [kind.removesuffix("_test") for kind in dataset["type"]])
    return docs.add_column("questions_without_image", [0] * len(docs))


def read_questions(folder: Path) -> list[Doc]:
    """The questions of test_human.json, then of test_augmented.json, whose image is in chartqa/test/png/."""
    images = official.image_folder(folder, IMAGES, HUB)
    docs = []
    for kind, path in FILES.items():
        file = official.required(folder, path, HUB)
        for number, row in enumerate(official.json_rows(file), start=1):
            where = f"{file}, question {number}"
            docs.append(
                {
                    "image": str(images / text_field(row, "imgname", where)),
                    "question": text_field(row, "query", where),
                    "answer": text_field(row, "label", where),
                    "kind": kind,
                }
            )
    return official.with_images(TASK, docs, images)


def prompt(doc: Doc) -> str:
    """The question and the instruction of lmms-eval's chartqa."""
    return f"{usable(doc)['question']}\n{ONE_WORD}"


# --- scores ------------------------------------------------------------------------------------------------


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the relaxed accuracy, over all and of its kind; 0 for NO_ANSWER."""
    points = score(not isinstance(results[0], NoAnswer) and is_correct(results[0], doc["answer"]))
    return {
        "accuracy": points,
        doc["kind"]: points,
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def is_correct(reply: str, answer: str) -> bool:
    """Whether a reply is the answer, or a number within 5% of it (lmms-eval's)."""
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness

    return bool(relaxed_correctness(reply, answer))
