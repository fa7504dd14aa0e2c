"""HR-Bench: questions about 4K and 8K images, each asked with its options in several orders (cycles)."""

from __future__ import annotations

import base64
import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from PIL import Image

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.images import UNREADABLE, open_image, unreadable
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common.official import by_environment, from_either, required
from dualfocus_lmms.tasks.common.options import (
    correct_letter,
    hub_image,
    hub_row,
    read_choice,
    score,
    share_images,
)
from dualfocus_lmms.tasks.common.sources import Doc, images_needed, text_field
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
LONG = 10_000  # characters: an image has more, the text of a question has fewer

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
    """The questions of `<folder>/hrbench/hr_bench_4k.tsv` or its 8K counterpart.

    Images stay in the file, as base64 text: the image of a document is the file's path, "#" and the bytes
    where that text begins and ends. UserError when a row has no image: the file is incomplete.
    """
    file = required(folder, FILES[split], HUB)
    docs = []
    for row, begin, end in _rows(file):
        where = f"{file}: index {row.get('index')}"
        if images_needed():
            text_field(row, "image", where)
        docs.append({**_question(row, where), "image": f"{file}#{begin}-{end}", "questions_without_image": 0})
    if not docs:
        raise UserError(f"{file} holds no question: get it again from the hub's {HUB}.")
    return docs


def _rows(file: Path) -> Iterator[tuple[Doc, int, int]]:
    """Every row of a TSV file whose last column is the image, and where in the file that begins and ends.

    The reader of csv, slow with megabytes, gets a short text in the place of an image.
    """
    begin = end = 0

    def short_lines() -> Iterator[str]:
        nonlocal begin, end
        while line := binary.readline():
            start, tab = binary.tell() - len(line), line.rfind(b"\t") + 1
            begin, end = start + tab, start + len(line.rstrip(b"\r\n"))
            yield (line if end - begin < LONG else line[:tab] + b"picture").decode()

    try:
        with file.open("rb") as binary:
            reader = csv.DictReader(short_lines(), delimiter="\t")
            if (reader.fieldnames or [""])[-1] != "image":
                raise UserError(f"{file}: the last column must be 'image', as in the official file.")
            for row in reader:
                yield row, begin, end
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read ({error}): get it again from the hub's {HUB}.") from error


def _base64(reference: str) -> bytes:
    """The text of an image, found by a document's image."""
    file, _, span = reference.rpartition("#")
    begin, end = map(int, span.split("-"))
    with open(file, "rb") as binary:
        binary.seek(begin)
        return binary.read(end - begin)


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


def images(doc: Doc) -> list[Image.Image]:
    """`doc_to_visual`: the document's one image, decoded from the base64 text of its row."""
    try:
        text = _base64(doc["image"]) if isinstance(doc["image"], str) else hub_image(doc)
        return [open_image(io.BytesIO(base64.b64decode(text)))]
    except UNREADABLE as error:  # text that is no base64 is a ValueError
        what = f"The image of HR-Bench's question {doc['index']}"
        raise unreadable(what, error, "get the file again.") from error


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
