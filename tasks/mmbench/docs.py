"""df_mmbench_en_dev: MMBench's English dev split, each question in all rotations of its options.

The rotations of a question stand side by side, so that a limit cuts at most one question apart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, opened, unreadable
from dualfocus_lmms.tasks.common import official
from dualfocus_lmms.tasks.common.letters import letters
from dualfocus_lmms.tasks.common.prompts import LETTER_ANSWER, option_lines
from dualfocus_lmms.tasks.common.sheets import read_sheet
from dualfocus_lmms.tasks.common.sources import Doc, images_needed, text_field, usable

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "lmms-lab-encoder/MMBench"
SPLIT = "dev"
FILE = "mmbench/mmbench_dev_20230712.tsv"
TURN = 1_000_000  # the index of a question's k-th rotation is its own plus k times this
OPTIONS = "ABCD"
# The benchmark's "l2-category", by the name it has in our metrics.
ABILITIES = {
    "coarse_perception": "coarse_perception",
    "finegrained_perception (instance-level)": "finegrained_single",
    "finegrained_perception (cross-instance)": "finegrained_cross",
    "attribute_reasoning": "attribute_reasoning",
    "relation_reasoning": "relation_reasoning",
    "logic_reasoning": "logic_reasoning",
}
_LONGEST_REFERENCE = 16  # an image cell this short names the question whose image it is

__getattr__ = official.by_environment(HUB, SPLIT, reads_given=True)


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: the documents of `in_all_rotations` with their fingerprint; image is decoded."""
    return official.from_either(
        lambda: _with_image_feature(_hub_questions(dataset)),
        lambda folder: _with_image_feature(read_questions(folder)),
        lambda file: _with_image_feature(read_submission(file)),
    )


def _with_image_feature(docs: list[Doc]) -> Dataset:
    from datasets import Dataset
    from datasets import Image as ImageFeature

    return Dataset.from_list(docs).cast_column("image", ImageFeature())


def _hub_questions(dataset: Dataset) -> list[Doc]:
    from datasets import Image as ImageFeature

    rows = dataset.cast_column("image", ImageFeature(decode=False))
    return in_all_rotations([_document(row, row["image"], HUB) for row in rows])


def read_questions(folder: Path) -> list[Doc]:
    """The questions of mmbench/mmbench_dev_20230712.tsv, which holds its images; see `in_all_rotations`."""
    import pandas

    file = official.required(folder, FILE, HUB)
    try:
        table = pandas.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}): give the official file.") from error
    rows = table.to_dict("records")
    cells = {row.get("index"): row.get("image") for row in rows}
    images = [_image(row, cells, str(file)) if images_needed() else None for row in rows]
    docs = [_document(row, image, str(file)) for row, image in zip(rows, images, strict=True)]
    if len({doc["index"] for doc in docs}) < len(docs):
        raise UserError(f"{file}: two rows have the same index. Give the official file.")
    if not docs:
        raise UserError(f"{file} holds no question: give the official file.")
    return in_all_rotations(docs)


def read_submission(file: Path) -> list[Doc]:
    """The questions of an Excel file with answers that also has the columns answer and A to D, as submissions
    to MMBench's dev split do. It asks what it answers: no rotation is added. No question has an image."""
    cells = [
        {name: "" if name == "image" else str(value) for name, value in row.items()}
        for row in read_sheet(file)
    ]
    docs = [_document({"question": "-", **row}, None, str(file)) for row in cells]
    return sorted(docs, key=lambda doc: (doc["question_id"], doc["rotation"]))


def in_all_rotations(docs: list[Doc]) -> list[Doc]:
    """The documents question by question; their rotations are made here when there is not one among them."""
    docs = sorted(docs, key=lambda doc: (doc["question_id"], doc["rotation"]))
    if any(doc["rotation"] for doc in docs):
        return docs
    return [turned for doc in docs for turned in _rotations(doc)]


def _rotations(doc: Doc) -> Iterator[Doc]:
    options, index = doc["options"], letters(doc["options"]).index(doc["answer"])
    for turn in range(len(options)):
        yield {
            **doc,
            "rotation": turn,
            "index": doc["question_id"] + turn * TURN,
            "options": options[turn:] + options[:turn],
            "answer": letters(options)[(index - turn) % len(options)],
        }


def _document(row: Doc, image: Any, file: str) -> Doc:
    """index, question_id, rotation, image, hint (may be empty), question, options, answer, ability, ..."""
    where = f"{file}, index {row.get('index')!r}"
    question, turn = _index(row, where)
    options = _options(row)
    if len(options) < 2:
        raise UserError(f"{where}: at least the options A and B are needed. Give the official file.")
    text_field(row, "question", where)  # it must not be empty, but is asked as it stands, as LLaVA does
    answer = text_field(row, "answer", where)
    if answer not in tuple(letters(options)):
        raise UserError(f"{where}: the answer {answer!r} is none of the letters {letters(options)}.")
    return {
        "question_id": question,
        "rotation": turn,
        "index": question + turn * TURN,
        "image": image,
        "hint": "" if _is_absent(row.get("hint")) or row["hint"].lower() == "none" else row["hint"],
        "question": row["question"],
        "options": options,
        "answer": answer,
        "ability": _ability(row, where),
        "category": str(row.get("category", "")),
    }


def _index(row: Doc, where: str) -> tuple[int, int]:
    """(the question's own index, the number of the rotation)."""
    try:
        turn, question = divmod(int(row["index"]), TURN)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where}: 'index' must be a whole number. Give the official file.") from None
    return question, turn


def _options(row: Doc) -> list[str]:
    """The texts up to the first empty one."""
    options: list[str] = []
    for letter in OPTIONS:
        if _is_absent(row.get(letter)):
            break
        options.append(row[letter])
    return options


def _is_absent(cell: object) -> bool:
    return not isinstance(cell, str) or cell.strip() in ("", "nan")


def _ability(row: Doc, where: str) -> str | None:
    """The name in our metrics; None where there is no such column, as in submissions."""
    if not {"l2-category", "L2-category"} & set(row):
        return None
    name = row.get("l2-category", row.get("L2-category"))  # the file's name of the column, and the hub's
    if name not in ABILITIES:
        raise UserError(f"{where}: 'l2-category' must be one of {', '.join(ABILITIES)}, got {name!r}.")
    return ABILITIES[name]


def _image(row: Doc, cells: dict[Any, Any], file: str) -> Doc:
    """An image as {"bytes", "path"} from its base64 text, or that of the row whose index stands instead."""
    cell = row.get("image")
    if isinstance(cell, str) and len(cell) <= _LONGEST_REFERENCE:
        cell = cells.get(cell, cell)
    try:
        content = base64.b64decode(cell, validate=True)  # type: ignore[arg-type]
        with opened(io.BytesIO(content)):
            return {"bytes": content, "path": None}
    # None is a TypeError; text that is not base64, a ValueError; what is no image, an OSError.
    except (TypeError, *UNREADABLE) as error:
        what = f"{file}, index {row.get('index')!r}: the image in base64 under 'image'"
        raise unreadable(what, error, "give the official file.") from error


def prompt(doc: Doc) -> str:
    """LLaVA's: the hint if there is one, the question, its options, the letter instruction."""
    hint = f"{usable(doc)['hint']}\n" if usable(doc)["hint"] else ""
    return f"{hint}{doc['question']}\n{option_lines(doc['options'])}\n{LETTER_ANSWER}"
