"""HR-Bench: questions about 4K and 8K images, each asked with its options in several orders (cycles)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common import image_tsv
from dualfocus_lmms.tasks.common.official import by_environment, from_either, required
from dualfocus_lmms.tasks.common.options import (
    correct_letter,
    hub_row,
    read_choice,
    score,
    share_images,
)
from dualfocus_lmms.tasks.common.sources import Doc, text_field
from dualfocus_lmms.tasks.common.uncertainty import mean_error

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "DreamMr/HR-Bench"
HUB_NAME = "hrbench_version_split"
SPLITS = ("hrbench_4k", "hrbench_8k")
FILES = {"hrbench_4k": "hrbench/hr_bench_4k.tsv", "hrbench_8k": "hrbench/hr_bench_8k.tsv"}
OPTIONS = ("A", "B", "C", "D")
COLUMNS = ("index", "question", "answer", "category", *OPTIONS, "cycle_category")
CATEGORIES = ("single", "cross")

__getattr__ = by_environment(HUB, *SPLITS, name=HUB_NAME)


class CycleScore(TypedDict):
    """The score of one reply to a question whose options stood in the order of `cycle`.

    question: the same in all cycles. The host knows the key `score`.
    """

    question: str
    cycle: str
    score: float


# --- documents ---------------------------------------------------------------------------------------------


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: a split's questions without images, from either source, and their fingerprint."""
    split = str(dataset.split)
    return from_either(lambda: _hub_questions(dataset, split), lambda folder: read_questions(folder, split))


def _hub_questions(dataset: Dataset, split: str) -> list[Doc]:
    share_images(split, dataset.select_columns(["image"]))
    return [
        {**_question(row, f"{HUB}, {split}, row {number}"), **hub_row(split, number)}
        for number, row in enumerate(dataset.select_columns(list(COLUMNS)))
    ]


def read_questions(folder: Path, split: str) -> list[Doc]:
    """The questions of `<folder>/hrbench/hr_bench_4k.tsv` or its 8K counterpart, which hold their images."""
    file = required(folder, FILES[split], HUB)
    return [
        {**_question(row, where), "image": image, "questions_without_image": 0}
        for row, where, image in image_tsv.read_questions(file, HUB)
    ]


def _question(row: Doc, where: str) -> Doc:
    options = [str(row[name]) for name in OPTIONS if row.get(name) not in (None, "")]
    if len(options) < 2 or any(row.get(name) in (None, "") for name in OPTIONS[: len(options)]):
        raise UserError(f"{where}: two or more options are expected, from column A on without a gap.")
    if row.get("category") not in CATEGORIES:
        raise choose(f"category in {where}", row.get("category"), CATEGORIES)
    if row.get("cycle_category") in (None, ""):
        raise UserError(f"{where}: 'cycle_category' is missing. Give the official file.")
    return {
        "index": str(row.get("index", "")),
        "question": text_field(row, "question", where),
        "options": options,
        "answer": correct_letter(row.get("answer"), options, where),
        "category": row["category"],
        "cycle": str(row["cycle_category"]),
    }


# --- scores ------------------------------------------------------------------------------------------------


def results(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to the accuracy, over all and in its category, and to the letters' shares."""
    choice = read_choice(doc, results[0])
    question = "\n".join([doc["question"], *sorted(doc["options"])])
    points = CycleScore(question=question, cycle=doc["cycle"], score=score(choice["said"] == choice["right"]))
    names = ("accuracy", doc["category"])
    return {
        **dict.fromkeys(names, points),
        **dict.fromkeys((f"{name}_stderr" for name in names), points),
        "letter_bias": choice,
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def mean_over_cycles(scores: Sequence[CycleScore]) -> float:
    """The mean over the cycles of the mean within each, as the official evaluator takes it."""
    return fmean(_means(scores, "cycle"))


def cycles_error(scores: Sequence[CycleScore]) -> float | str:
    """The standard error of `mean_over_cycles`, all cycles of a question together; "N/A" for one question."""
    error = mean_error(_means(scores, "question"))
    return "N/A" if isnan(error) else error


def _means(scores: Sequence[CycleScore], by: Literal["cycle", "question"]) -> list[float]:
    groups = defaultdict(list)
    for item in scores:
        groups[item[by]].append(item["score"])
    return [fmean(values) for values in groups.values()]
