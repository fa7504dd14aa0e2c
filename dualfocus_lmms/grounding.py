"""Where the region of the second look comes from when the model does not locate it, and how one is moved.

A grounding is a function from a question to a box. Those here need no model; the others are known by name
and made in (`dualfocus_lmms.models.grounding.bind`). Knows nothing about the flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.boxes import WHOLE, Box
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.types import Question

MODEL = "model"  # the default: the model's own reply to Q1
SEED = 0

# Groundings that need a model.
DINO, ATTENTION, PLAIN_ATTENTION = MODEL_GROUNDINGS = ("dino", "attention", "attention_plain")
ATTENTIONS = (ATTENTION, PLAIN_ATTENTION)
DINO_CHECKPOINT = "IDEA-Research/grounding-dino-base"


@dataclass(frozen=True, slots=True)
class Attended:
    """A region with the attention that it was chosen from."""

    box: Box
    map: AttentionMap


# A region, or several with regions=separate; None or no box where it finds nothing: the answer is macro then.
Grounded = Box | Sequence[Box] | Attended | None
Grounder = Callable[[Question], Grounded]


def annotated(question: Question) -> Box:
    """The data set's own box. UserError when the question has none."""
    if question.box is None:
        raise UserError(
            f"Question {question.id!r} has no annotated box, and grounding=annotated needs one of every "
            "question. The task's metadata names the column that holds it (dualfocus: box); for data without "
            f"boxes choose another grounding: {', '.join(name for name in names() if name != 'annotated')}."
        )
    return question.box


def each_annotated(question: Question) -> Sequence[Box]:
    """The data set's own boxes of the things that a question is about, else its one box."""
    return question.boxes or (annotated(question),)


def whole(question: Question) -> Box:
    """The whole image."""
    return WHOLE


def center(question: Question) -> Box:
    """The middle half of the image in both directions: a quarter of its area."""
    return Box(0.25, 0.25, 0.75, 0.75)


def random(question: Question) -> Box:
    """A quarter of the image's area in its own shape, somewhere inside it; always the same for a question."""
    generator = _generator("region", question)
    x0, y0 = generator.uniform(0, 0.5), generator.uniform(0, 0.5)
    return Box(x0, y0, x0 + 0.5, y0 + 0.5)


ANNOTATED = "annotated"
GROUNDINGS: dict[str, Grounder] = {
    ANNOTATED: annotated,
    "whole": whole,
    "center": center,
    "random": random,
}


def names() -> list[str]:
    """Every grounding a user can name."""
    return [MODEL, *GROUNDINGS, *MODEL_GROUNDINGS]


def load_grounding(name: str, several: bool = False) -> Grounder | None:
    """The grounding called `name`, None for the model's own; UserError lists the known ones.

    several: with every region that it knows of, and not with one around them.
    One that needs a model refuses every question until it is tied to its model.
    """
    if name not in names():
        raise choose("grounding", name, names())
    if several and name == ANNOTATED:
        return each_annotated
    return _unbound(name) if name in MODEL_GROUNDINGS else GROUNDINGS.get(name)


def _unbound(name: str) -> Grounder:
    def refuse(question: Question) -> Box:
        raise UserError(
            f"grounding={name} needs a model, and none was loaded for it: use --model dualfocus or "
            "DualFocusModel, or tie the settings to one with dualfocus_lmms.models.grounding.bind.bound."
        )

    return refuse


def detector_for(grounding: str, given: str | None) -> str | None:
    """The detector that `grounding` loads, None where it loads none; UserError for one that is not used."""
    if grounding == DINO:
        return given or DINO_CHECKPOINT
    if given is not None:
        raise UserError(
            f"grounding_checkpoint={given!r} is the detector of grounding=dino, and grounding is "
            f"{grounding!r}: leave it out, or give grounding=dino."
        )
    return None


def shifted(box: Box, question: Question, pixels: int) -> Box:
    """`box` moved by `pixels` of the original image, as the paper's table 5 permutes the predicted region.

    The direction is drawn from all around, by SEED and the question's id alone: one direction serves every
    distance. The size stays, and the result may reach outside the image; what is cropped is cut to it.
    """
    angle = _generator("shift", question).uniform(0, 2 * math.pi)
    width, height = question.image.size
    dx, dy = pixels * math.cos(angle) / width, pixels * math.sin(angle) / height
    return Box(box.x0 + dx, box.y0 + dy, box.x1 + dx, box.y1 + dy)


def _generator(purpose: str, question: Question) -> Random:
    """Seeded by text, which gives the same numbers in every process, on every machine."""
    return Random(f"{purpose} {SEED} {question.id}")
