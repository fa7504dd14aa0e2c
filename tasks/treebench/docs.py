"""df_treebench: TreeBench, options about small objects in crowded photos, with a box around each object."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common import image_tsv, pixel_boxes
from dualfocus_lmms.tasks.common.official import by_environment, from_either, required
from dualfocus_lmms.tasks.common.options import Choice, correct_letter, hub_row, score, share_images
from dualfocus_lmms.tasks.common.prompts import option_lines
from dualfocus_lmms.tasks.common.scoring import NoAnswer
from dualfocus_lmms.tasks.common.sources import Doc, text_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

TASK = "df_treebench"
HUB = "HaochenWang/TreeBench"
QUESTIONS = "treebench/TreeBench.tsv"
INSTRUCTION = "Answer with the correct option's letter directly. \n"
# The benchmark's categories, by the name that they have in our metrics.
CATEGORIES = {
    "Perception/Attributes": "attributes",
    "Perception/Material": "material",
    "Perception/Physical State": "physical_state",
    "Perception/Object Retrieval": "object_retrieval",
    "Perception/OCR": "ocr",
    "Reasoning/Perspective Transform": "perspective_transform",
    "Reasoning/Ordering": "ordering",
    "Reasoning/Contact and Occlusion": "contact_and_occlusion",
    "Reasoning/Spatial Containment": "spatial_containment",
    "Reasoning/Comparison": "comparison",
}
_MARKED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

__getattr__ = by_environment(
    HUB, "train", hub_kwargs={"data_files": {"train": "TreeBench.tsv"}, "delimiter": "\t"}
)


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the questions with their boxes, from either source, and their fingerprint.

    boxes: x0, y0, x1, y1 of each annotated object as fractions of the image. box: the region around all of
    them, None where none is annotated.
    """
    return from_either(lambda: _hub_questions(dataset), read_questions)


def _hub_questions(dataset: Dataset) -> list[Doc]:
    share_images(TASK, dataset.select_columns(["image"]))
    rows = enumerate(dataset.remove_columns("image"))
    return [_question(row, f"{HUB}, row {number}", hub_row(TASK, number)) for number, row in rows]


def read_questions(folder: Path) -> list[Doc]:
    """The questions of `<folder>/treebench/TreeBench.tsv`, which holds their images."""
    file = required(folder, QUESTIONS, HUB)
    return [
        _question(row, where, {"image": image, "questions_without_image": 0})
        for row, where, image in image_tsv.read_questions(file, HUB)
    ]


def _question(row: Doc, where: str, image: Doc) -> Doc:
    options = [str(row[letter]) for letter in ascii_uppercase if row.get(letter) not in (None, "")]
    if len(options) < 2 or any(row.get(letter) in (None, "") for letter in ascii_uppercase[: len(options)]):
        raise UserError(f"{where}: two or more options are expected, from column A on without a gap.")
    if row.get("category") not in CATEGORIES:
        raise choose(f"category in {where}", row.get("category"), tuple(CATEGORIES))
    doc = {
        "index": str(row.get("index", "")),
        "question": text_field(row, "question", where),
        "options": options,
        "answer": correct_letter(row.get("answer"), options, where),
        "category": CATEGORIES[row["category"]],
        **image,
    }
    boxes = read_boxes(row.get("target_instances"), image_tsv.image_size(doc), where)
    return {**doc, "boxes": pixel_boxes.corners(boxes), "box": pixel_boxes.around(boxes)}


def read_boxes(value: Any, size: tuple[int, int], where: str) -> list[Box]:
    """The boxes of "[[x0, y0, x1, y1], ...]" in pixels of an image of `size`, cut to it, as fractions."""
    try:
        pixels = literal_eval(value) if isinstance(value, str) else value
    except (TypeError, ValueError, SyntaxError, MemoryError, RecursionError):
        pixels = value  # refused below
    return pixel_boxes.read_boxes(pixels, size, where, "target_instances", "[x0, y0, x1, y1]")


def prompt(doc: Doc) -> str:
    """The benchmark's own prompt, to the character as in VLMEvalKit, where its authors evaluate."""
    return f"Question: {usable(doc)['question']}\nOptions:\n{option_lines(doc['options'])}\n{INSTRUCTION}"


# --- scores ------------------------------------------------------------------------------------------------


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy, over all and in its category, and to the letters' shares."""
    said = None if isinstance(results[0], NoAnswer) else read_answer(results[0])
    points = score(said == doc["answer"])
    return {
        "accuracy": points,
        doc["category"]: points,
        "letter_bias": Choice(said=said, right=doc["answer"]),
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def read_answer(reply: str) -> str | None:
    """The letter that the benchmark's evaluator reads in a reply, None where it reads none.

    What stands between <answer> and </answer>, in capitals, or the whole reply; of that the first capital
    from A to E (the same function as MME-RealWorld's; lmms-eval's).
    """
    from lmms_eval.tasks.mme_realworld.utils import extract_characters_regex

    marked = _MARKED.search(reply)
    return extract_characters_regex(marked[1].strip().upper() if marked else reply) or None
