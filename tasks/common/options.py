"""What the tasks with options share: the prompt, images of the hub, and counting letters.

Knows no benchmark. A document has image, question (bare), options and answer (the correct letter). Its image
is a path, or a row of the hub data set that `share_images` was given: the hub's images stay in its cache and
are read when they are requested.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.tasks.common import sources
from dualfocus_lmms.tasks.common.letters import letters, read_letter
from dualfocus_lmms.tasks.common.prompts import LETTER_ANSWER, option_lines
from dualfocus_lmms.tasks.common.sources import Doc, usable

if TYPE_CHECKING:
    from datasets import Dataset

_hub_images: dict[str, Dataset] = {}


class Choice(TypedDict):
    """The letter that a reply names, None where it names none, and the correct one."""

    said: str | None
    right: str


# --- documents ---------------------------------------------------------------------------------------------


def prompt(doc: Doc) -> str:
    """The question, its options and LLaVA's instruction to answer with a letter."""
    return f"{usable(doc)['question']}\n{option_lines(doc['options'])}\n{LETTER_ANSWER}"


def correct_letter(value: Any, options: Sequence[str], where: str) -> str:
    """The letter in a field of an official file; UserError when it is none of the options'."""
    letter = value.strip().upper() if isinstance(value, str) else value
    if letter not in tuple(letters(options)):
        raise UserError(
            f"{where}: the correct answer must be a letter of its {len(options)} options, got {value!r}."
        )
    return letter


def share_images(task: str, rows: Dataset) -> None:
    """Let documents of `task` point to rows of a hub data set with a column image (see `hub_row`)."""
    _hub_images[task] = rows


def hub_row(task: str, row: int) -> Doc:
    """The part of a document by which `images` finds its image. No image of the hub is missing."""
    return {"image": row, "hub": task, "questions_without_image": 0}


def hub_image(doc: Doc) -> Any:
    """What the hub's column image holds for a document of `hub_row`."""
    return _hub_images[doc["hub"]][doc["image"]]["image"]


def images(doc: Doc) -> list[Image.Image]:
    """`doc_to_visual`: the document's one image, upright and RGB, from its path or from the hub's row."""
    if isinstance(doc["image"], str):
        return sources.images(doc)
    image = hub_image(doc)
    return sources.images({"image": image[0] if isinstance(image, list) else image})


# --- counting ----------------------------------------------------------------------------------------------


def read_choice(doc: Doc, reply: str) -> Choice:
    """What `read_letter` reads in a reply, beside the correct letter."""
    return Choice(said=read_letter(reply, doc["options"]), right=doc["answer"])


def score(correct: bool) -> float:
    """100 for a correct answer, 0 for a wrong one."""
    return 100.0 if correct else 0.0


def letter_bias(choices: Sequence[Choice]) -> float:
    """How far a model prefers a position among the options, in percentage points.

    For each letter its share among the letters that were named, minus its share among the correct ones; the
    largest absolute difference. Replies that name no letter are left out of the first; 0 when all are.
    """
    predicted = Counter(choice["said"] for choice in choices if choice["said"] is not None)
    correct = Counter(choice["right"] for choice in choices)
    if not predicted:
        return 0.0
    return max(
        abs(100.0 * predicted[letter] / predicted.total() - 100.0 * correct[letter] / correct.total())
        for letter in predicted | correct
    )
