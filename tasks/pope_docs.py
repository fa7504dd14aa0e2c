"""POPE, "is there a ... in the image?": its three splits, from the hub or from the official files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import with_fingerprint
from dualfocus_lmms.tasks.prompts import SHORT_ANSWER
from dualfocus_lmms.tasks.sources import (
    DATA,
    PLACEHOLDER_PATH,
    Doc,
    build_dataset,
    images_needed,
    named_path,
    placeholder,
    read_json_lines,
    text_field,
    usable,
)

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "lmms-lab-encoder/POPE"
SPLITS = ("random", "popular", "adversarial")
COLUMNS = ("question_id", "image", "question", "answer")
NAMES_SHOWN = 5

log = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    """DATASET_PATH and DATASET_KWARGS of the YAML, by the environment at the moment a task is loaded."""
    offline = named_path(DATA) is not None
    if name == "DATASET_PATH":
        return PLACEHOLDER_PATH if offline else HUB
    if name == "DATASET_KWARGS":
        return placeholder(*SPLITS) if offline else None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def documents(dataset: Dataset) -> Dataset:
    """`process_docs`: either source with COLUMNS, questions_without_image and the questions' fingerprint."""
    folder, split = named_path(DATA), str(dataset.split)
    if folder is not None:
        return with_fingerprint(build_dataset(lambda: read_split(folder, split)))
    docs = dataset.select_columns(list(COLUMNS))
    return with_fingerprint(docs.add_column("questions_without_image", [0] * len(docs)))


def read_split(folder: Path, split: str) -> list[Doc]:
    """The questions of `<folder>/pope/coco_pope_<split>.json` whose image is in `<folder>/pope/images/`.

    Each document says how many of the split's questions were left out because their image is missing: none
    where `images_needed` says that no image is looked for.
    """
    file, images = folder / "pope" / f"coco_pope_{split}.json", folder / "pope" / "images"
    for path, there in ((file, file.is_file()), (images, images.is_dir() or not images_needed())):
        if not there:
            raise UserError(
                f"{path} is missing. {DATA} is {str(folder)!r}: it must hold the official "
                f"pope/coco_pope_<split>.json and the images in pope/images/. Put them there, or unset "
                f"{DATA} to use the hub's {HUB}."
            )
    questions = [_document(row, images, where) for where, row in read_json_lines(file)]
    missing = {doc["image"] for doc in questions if images_needed() and not Path(doc["image"]).is_file()}
    kept = [doc for doc in questions if doc["image"] not in missing]
    if not kept:
        raise UserError(
            f"None of the {len(questions)} questions of {file} has its image in {images}: put them there."
        )
    left_out = len(questions) - len(kept)
    if left_out:
        _warn(split, left_out, len(questions), images, sorted(Path(path).name for path in missing))
    return [{**doc, "questions_without_image": left_out} for doc in kept]


def _document(row: Doc, images: Path, where: str) -> Doc:
    answer = text_field(row, "label", where).lower()
    if answer not in ("yes", "no"):
        raise UserError(f"{where}: 'label' must be yes or no, got {row['label']!r}.")
    return {
        "question_id": str(row.get("question_id", "")),
        "image": str(images / text_field(row, "image", where)),
        "question": text_field(row, "text", where),
        "answer": answer,
    }


def _warn(split: str, left_out: int, asked: int, images: Path, names: list[str]) -> None:
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    log.warning(
        "df_pope_%s: %d of %d questions are left out, because %d images are missing in %s: %s",
        *(split, left_out, asked, len(names), images, shown),
    )


def prompt(doc: Doc) -> str:
    """The question and LLaVA's short-answer instruction."""
    return f"{usable(doc)['question'].strip()}\n{SHORT_ANSWER}"
