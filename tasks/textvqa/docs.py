"""df_textvqa_val and df_textvqa_val_ocr: TextVQA's validation questions, from the hub or the official files.

The two differ in the prompt alone: with _ocr it names the words that an OCR system read in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.tasks.common import official
from dualfocus_lmms.tasks.common.scoring import NoAnswer
from dualfocus_lmms.tasks.common.sources import Doc, read_rows, text_field, usable
from dualfocus_lmms.tasks.common.vqa_accuracy import vqa_accuracy

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "lmms-lab-encoder/textvqa"
SPLIT = "validation"
QUESTIONS = "textvqa/TextVQA_0.5.1_val.json"
IMAGES = "textvqa/train_images"  # the official archive keeps the images of both splits in it
OCR_PROMPTS = "textvqa/llava_textvqa_val_v051_ocr.jsonl"
ANSWERS = 10

Prompts = dict[tuple[str, str], str]  # by image id and question in small letters

__getattr__ = official.by_environment(HUB, SPLIT)


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs` of df_textvqa_val: question_id, image, question, answers, questions_without_image.

    The questions' fingerprint, too.
    """
    return official.from_either(lambda: _hub_questions(dataset), read_questions)


def ocr_documents(dataset: Dataset) -> Dataset:
    """`process_docs` of df_textvqa_val_ocr: ocr_prompt (files) or ocr_tokens (hub) as well."""
    return official.from_either(lambda: _hub_questions(dataset, "ocr_tokens"), read_ocr_questions)


def _hub_questions(dataset: Dataset, *columns: str) -> Dataset:
    questions = [_capital_first(question) for question in dataset["question"]]
    docs = dataset.select_columns(["question_id", "image", "answers", *columns])
    docs = docs.add_column("question", questions)
    return docs.add_column("questions_without_image", [0] * len(docs))


def read_questions(folder: Path) -> list[Doc]:
    """The questions of TextVQA_0.5.1_val.json whose image is textvqa/train_images/<image_id>.jpg."""
    images = official.image_folder(folder, IMAGES, HUB)
    return official.with_images("df_textvqa_val", _documents(folder, images), images)


def read_ocr_questions(folder: Path) -> list[Doc]:
    """The same questions, each with LLaVA's whole prompt, reference OCR tokens in it, as ocr_prompt."""
    images, file = official.image_folder(folder, IMAGES, HUB), official.required(folder, OCR_PROMPTS, HUB)
    prompts = _read_prompts(file)
    docs = [{**doc, "ocr_prompt": _found(prompts, doc, file)} for doc in _documents(folder, images)]
    return official.with_images("df_textvqa_val_ocr", docs, images)


def _documents(folder: Path, images: Path) -> list[Doc]:
    file = official.required(folder, QUESTIONS, HUB)
    rows = official.json_rows(file, "data")
    return [_document(row, images, f"{file}, question {row.get('question_id')!r}") for row in rows]


def _document(row: Doc, images: Path, where: str) -> Doc:
    answers = row.get("answers")
    if (
        not isinstance(answers, list)
        or len(answers) != ANSWERS
        or not all(isinstance(answer, str) for answer in answers)
    ):
        raise UserError(f"{where}: 'answers' must be the texts of {ANSWERS} people, got {answers!r}.")
    return {
        "question_id": str(row.get("question_id", "")),
        "image": str(images / f"{text_field(row, 'image_id', where)}.jpg"),
        "question": _capital_first(text_field(row, "question", where)),
        "answers": answers,
    }


def _capital_first(question: str) -> str:
    """The question as LLaVA asks it: "What is this?". The official files have "what is this?"."""
    return question[:1].upper() + question[1:]


def _read_prompts(file: Path) -> Prompts:
    def prompt(row: Doc, where: str) -> tuple[tuple[str, str], str]:
        text = text_field(row, "text", where)
        return (text_field(row, "question_id", where), text.split("\n")[0].lower()), text

    return dict(read_rows(file, prompt))


def _found(prompts: Prompts, doc: Doc, file: Path) -> str:
    image, question = Path(doc["image"]).stem, doc["question"]
    if (image, question.lower()) not in prompts:
        raise UserError(
            f"{file} has no prompt for {question!r} about image {image}: give LLaVA's file of all 5,000."
        )
    return prompts[image, question.lower()]


def prompt(doc: Doc) -> str:
    """The question and LLaVA's short-answer instruction."""
    return f"{usable(doc)['question']}\n{SHORT_ANSWER}"


def ocr_prompt(doc: Doc) -> str:
    """The same with reference OCR tokens between them, as in LLaVA's file."""
    if "ocr_prompt" in usable(doc):
        return doc["ocr_prompt"]
    return f"{doc['question']}\nReference OCR token: {', '.join(doc['ocr_tokens'])}\n{SHORT_ANSWER}"


# --- scores ------------------------------------------------------------------------------------------------


def textvqa_results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to each metric: VQA accuracy, 0 to 100; 0 for NO_ANSWER."""
    unanswered = isinstance(results[0], NoAnswer)
    return {
        "accuracy": 0.0 if unanswered else vqa_accuracy(results[0], doc["answers"]),
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }
