"""df_docvqa_val and df_infovqa_val: questions about scanned documents and infographics, scored by ANLS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.tasks.common import official
from dualfocus_lmms.tasks.common.scoring import NoAnswer
from dualfocus_lmms.tasks.common.sources import Doc, text_field, texts_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "lmms-lab-encoder/DocVQA"
DOCVQA_QUESTIONS = "docvqa/val_v1.0_withQT.json"
DOCVQA_IMAGES = "docvqa/spdocvqa_images"
INFOVQA_QUESTIONS = "infovqa/infographicsVQA_val_v1.0_withQT.json"
INFOVQA_IMAGES = "infovqa/infographicsvqa_images"

_hub = official.by_environment(HUB, "validation")


def __getattr__(attribute: str) -> Any:
    """The attributes of `official.by_environment`; the names of the hub's data sets are two."""
    names = {"DOCVQA_NAME": "DocVQA", "INFOVQA_NAME": "InfographicVQA"}
    if attribute in names:
        return names[attribute] if _hub("DATASET_PATH") == HUB else None
    return _hub(attribute)


@dataclass(frozen=True)
class Files:
    """A task's official files. name: the field with an image's file name."""

    task: str
    questions: str
    images: str
    name: str


_DOCVQA = Files("df_docvqa_val", DOCVQA_QUESTIONS, DOCVQA_IMAGES, "image")
_INFOVQA = Files("df_infovqa_val", INFOVQA_QUESTIONS, INFOVQA_IMAGES, "image_local_name")


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs` of df_docvqa_val: question_id, image, question, answers, questions_without_image.

    The questions' fingerprint, too.
    """
    return official.from_either(lambda: _hub_questions(dataset), read_documents)


def infographics(dataset: Dataset) -> Dataset:
    """`process_docs` of df_infovqa_val, as `documents`."""
    return official.from_either(lambda: _hub_questions(dataset), read_infographics)


def _hub_questions(dataset: Dataset) -> Dataset:
    docs = dataset.select_columns(["image", "question", "answers"])
    docs = docs.add_column("question_id", [str(number) for number in dataset["questionId"]])
    return docs.add_column("questions_without_image", [0] * len(docs))


def read_documents(folder: Path) -> list[Doc]:
    """The questions of DocVQA's val_v1.0_withQT.json whose image exists.

    "documents/ab_1.png" of the file is docvqa/spdocvqa_images/ab_1.png, as in the official archive.
    """
    return _read(folder, _DOCVQA)


def read_infographics(folder: Path) -> list[Doc]:
    """The questions of infographicsVQA_val_v1.0_withQT.json whose image is in infographicsvqa_images/."""
    return _read(folder, _INFOVQA)


def _read(folder: Path, files: Files) -> list[Doc]:
    file = official.required(folder, files.questions, HUB)
    images = official.image_folder(folder, files.images, HUB)
    docs = []
    for row in official.json_rows(file, "data"):
        where = f"{file}, question {row.get('questionId')!r}"
        name = text_field(row, files.name, where).removeprefix("documents/")
        docs.append(
            {
                "question_id": str(row.get("questionId", "")),
                "image": str(images / name),
                "question": text_field(row, "question", where),
                "answers": texts_field(row, "answers", where),
            }
        )
    return official.with_images(files.task, docs, images)


def prompt(doc: Doc) -> str:
    """The question and LLaVA's short-answer instruction, as in lmms-eval's docvqa and infovqa."""
    return f"{usable(doc)['question']}\n{SHORT_ANSWER}"


# --- scores ------------------------------------------------------------------------------------------------


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to each metric: ANLS, 0 to 100; 0 for NO_ANSWER."""
    return {
        "anls": 0.0 if isinstance(results[0], NoAnswer) else anls(results[0], doc["answers"]),
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def anls(reply: str, answers: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest answer, in percent; 0 below 50 (lmms-eval's)."""
    from lmms_eval.api.metrics import anls as similarity

    return 100.0 * float(similarity(references=answers, predictions=[reply])["anls"])
