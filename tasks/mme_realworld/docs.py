"""MME-RealWorld and its lite edition: five options each, the last one "not in the image" or the like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common import image_tsv, sources
from dualfocus_lmms.tasks.common.official import (
    by_environment,
    from_either,
    image_folder,
    json_rows,
    required,
    with_images,
)
from dualfocus_lmms.tasks.common.options import Choice, correct_letter, hub_row, score, share_images
from dualfocus_lmms.tasks.common.scoring import NoAnswer
from dualfocus_lmms.tasks.common.sources import Doc, text_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

TASK, LITE = "df_mme_realworld", "df_mme_realworld_lite"
HUB = "yifanzhang114/MME-RealWorld-Lmms-eval"
LITE_HUB = "yifanzhang114/MME-RealWorld-lite-lmms-eval"
QUESTIONS = "mme_realworld/MME_RealWorld.json"
IMAGES = "mme_realworld"
LITE_QUESTIONS = "mme_realworld_lite/MME-RealWorld-Lite.json"
LITE_IMAGES = "mme_realworld_lite/imgs"
KINDS = ("perception", "reasoning")
# The benchmark's subtasks, by the name that they have in our metrics.
DOMAINS = {
    "OCR with Complex Context": "ocr",
    "Remote Sensing": "remote_sensing",
    "Diagram and Table": "diagram_and_table",
    "Monitoring": "monitoring",
    "Autonomous_Driving": "autonomous_driving",
}
INSTRUCTION = (
    "Select the best answer to the above multiple-choice question based on the image. Respond with only the "
    "letter (A, B, C, D, or E) of the correct option.\nThe best answer is: "
)
_LABEL = re.compile(r"^\s*\([A-E]\)\s*")

_full, _lite = by_environment(HUB, "train"), by_environment(LITE_HUB, "train")


def __getattr__(attribute: str) -> Any:
    """The attributes of `by_environment`; with LITE_ those of the lite edition."""
    return (_lite if attribute.startswith("LITE_") else _full)(attribute.removeprefix("LITE_"))


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the questions of the whole benchmark, from either source, and their fingerprint."""
    return from_either(lambda: _hub_questions(dataset, TASK, HUB), read_questions)


def lite_documents(dataset: Dataset) -> Dataset:
    """`process_docs` of the lite edition, as `documents`."""
    return from_either(lambda: _hub_questions(dataset, LITE, LITE_HUB), read_lite_questions)


def _hub_questions(dataset: Dataset, task: str, hub: str) -> list[Doc]:
    share_images(task, dataset.select_columns(["bytes"]).rename_column("bytes", "image"))
    docs = []
    for number, row in enumerate(dataset.remove_columns("bytes")):
        category = str(row["category"])
        official = {
            "Question_id": row["index"],
            "Text": row["question"],
            "Answer choices": row["multi-choice options"],
            "Ground truth": row["answer"],
            "Task": "Perception" if "perception" in category.lower() else "Reasoning",
            "Subtask": category.rpartition("/")[-1],
        }
        docs.append({**_question(official, f"{hub}, row {number}"), **hub_row(task, number)})
    return docs


def read_questions(folder: Path) -> list[Doc]:
    """The questions of MME_RealWorld.json whose image, a path in mme_realworld/, exists."""
    return _read(folder, TASK, QUESTIONS, IMAGES, HUB)


def read_lite_questions(folder: Path) -> list[Doc]:
    """The questions of MME-RealWorld-Lite.json whose image, a path in mme_realworld_lite/imgs/, exists."""
    return _read(folder, LITE, LITE_QUESTIONS, LITE_IMAGES, LITE_HUB)


def _read(folder: Path, task: str, questions: str, images: str, hub: str) -> list[Doc]:
    file, root = required(folder, questions, hub), image_folder(folder, images, hub)
    docs = []
    for row in json_rows(file):
        where = f"{file}, question {row.get('Question_id')!r}"
        docs.append({**_question(row, where), "image": str(root / text_field(row, "Image", where))})
    return with_images(task, docs, root)


def _question(row: Doc, where: str) -> Doc:
    """A document of a row in the official file's words. choices: the options as they are asked: "(A) cat"."""
    choices = _choices(row.get("Answer choices"), where)
    kind, domain = str(row.get("Task", "")).lower(), str(row.get("Subtask", ""))
    if kind not in KINDS:
        raise choose(f"Task in {where}", kind, KINDS)
    if domain not in DOMAINS:
        raise choose(f"Subtask in {where}", domain, tuple(DOMAINS))
    return {
        "index": str(row.get("Question_id", "")),
        "question": text_field(row, "Text", where),
        "choices": choices,
        "options": [_LABEL.sub("", choice).strip() or choice for choice in choices],
        "answer": correct_letter(row.get("Ground truth"), choices, where),
        "kind": kind,
        "domain": DOMAINS[domain],
    }


def _choices(value: Any, where: str) -> list[str]:
    texts = isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)
    if not texts or len(value) < 2:
        raise UserError(f"{where}: 'Answer choices' must be two or more texts, got {value!r}.")
    return list(value)


def images(doc: Doc) -> list[Image.Image]:
    """`doc_to_visual`: the document's one image, from its path or from the base64 text of the hub's row."""
    return sources.images(doc) if isinstance(doc["image"], str) else image_tsv.images(doc)


def prompt(doc: Doc) -> str:
    """The benchmark's own prompt, to the character as lmms-eval has it."""
    choices = "\n".join(usable(doc)["choices"])
    return f"{doc['question']} The choices are listed below:\n{choices}\n{INSTRUCTION}"


# --- scores ------------------------------------------------------------------------------------------------


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy: over all, of its kind, and of its kind and domain."""
    said = None if isinstance(results[0], NoAnswer) else read_answer(results[0], doc["choices"])
    points = score(said == doc["answer"])
    return {
        "accuracy": points,
        f"{doc['kind']}_all": points,
        f"{doc['kind']}_{doc['domain']}": points,
        "letter_bias": Choice(said=said, right=doc["answer"]),
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def read_answer(reply: str, choices: Sequence[str]) -> str | None:
    """The letter that the benchmark's evaluator reads in a reply (lmms-eval's), None where it reads none.

    The first capital from A to E, whatever it stands for; without one, the first option that contains the
    reply.
    """
    from lmms_eval.tasks.mme_realworld.utils import extract_characters_regex

    return extract_characters_regex(reply, list(choices)) or None
