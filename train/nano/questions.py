"""Questions about images whose things are known: what the base model learns to answer.

Wordings for places are LLaVA-1.5's own, the others those of the scenes. A thing is a row of
`pictures.Labelled.things`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.scenes import COUNT, DETAIL, EXIST, RELATION, RELATIONS, SHAPES
from dualfocus_lmms.train.nano.images import COLOR_NAMES

LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: {}"
NAME = "Please provide a short description for this region: {}"
LIST = "Please provide a description for the image"
# Shares of the kinds of questions about whole scenes, of those that ask mostly for places, and about crops.
WHOLE_MIX = {
    "locate": 0.27,
    "locate_color": 0.08,
    "locate_shape": 0.06,
    "locate_both": 0.12,
    "name": 0.12,
    "list": 0.07,
    "exist": 0.12,
    "relation": 0.1,
    "count": 0.04,
    "detail": 0.02,
}
PLACE_MIX = {
    "locate": 0.36,
    "locate_color": 0.2,
    "locate_shape": 0.12,
    "locate_both": 0.04,
    "name": 0.12,
    "list": 0.02,
    "exist": 0.06,
    "relation": 0.05,
    "count": 0.02,
    "detail": 0.01,
}
CROP_MIX = {"detail": 0.6, "exist": 0.2, "relation": 0.1, "list": 0.1}

Things = Sequence[Sequence[float]]


class Pair(NamedTuple):
    """What is asked and answered, and the one thing that both are about, if there is one."""

    question: str
    answer: str
    about: Sequence[float] | None = None


def named(thing: Sequence[float]) -> str:
    return f"{COLOR_NAMES[int(thing[0])]} {SHAPES[int(thing[1])]}"


def ask(rng: random.Random, things: Things, mix: dict[str, float]) -> Pair:
    """A random question about an image with these things, of a kind that it allows."""
    while True:
        kind = rng.choices(list(mix), list(mix.values()))[0]
        pair = ASK[kind](rng, things)
        if pair is not None:
            return pair


def _short(question: str) -> str:
    return f"{question}\n{SHORT_ANSWER}"


def _write(*things: Sequence[float]) -> str:
    """The box that holds them."""
    x0, y0, x1, y1 = zip(*(thing[3:7] for thing in things), strict=True)
    return LLAVA.box_format.write(Box(min(x0), min(y0), max(x1), max(y1)), (1, 1))


def _locate(rng: random.Random, things: Things) -> Pair | None:
    if not things:
        return None
    thing = rng.choice(things)
    return Pair(LOCATE.format(named(thing)), _write(thing), thing)


def _locate_color(rng: random.Random, things: Things) -> Pair | None:
    return _locate_by(rng, things, 0, lambda thing: f"{COLOR_NAMES[int(thing[0])]} shape")


def _locate_shape(rng: random.Random, things: Things) -> Pair | None:
    return _locate_by(rng, things, 1, lambda thing: SHAPES[int(thing[1])])


def _locate_by(rng: random.Random, things: Things, column: int, phrase: Any) -> Pair | None:
    values = [thing[column] for thing in things]
    alone = [thing for thing in things if values.count(thing[column]) == 1]
    if not alone:
        return None
    thing = rng.choice(alone)
    return Pair(LOCATE.format(phrase(thing)), _write(thing), thing)


def _locate_both(rng: random.Random, things: Things) -> Pair | None:
    if len(things) < 2:
        return None
    first, second = rng.sample(list(things), 2)
    return Pair(LOCATE.format(f"{named(first)} and the {named(second)}"), _write(first, second))


def _name(rng: random.Random, things: Things) -> Pair | None:
    if not things:
        return None
    thing = rng.choice(things)
    return Pair(NAME.format(_write(thing)), named(thing), thing)


def _list(rng: random.Random, things: Things) -> Pair | None:
    if not things:
        return None
    ordered = sorted(things, key=lambda thing: thing[3] + thing[5])
    return Pair(LIST, ", ".join(named(thing) for thing in ordered))


def _exist(rng: random.Random, things: Things) -> Pair | None:
    present = [named(thing) for thing in things]
    if present and rng.random() < 0.5:
        thing = rng.choice(things)
        return Pair(_short(EXIST.format(named(thing))), "yes", thing)
    names = [f"{color} {shape}" for color in COLOR_NAMES for shape in SHAPES]
    absent = [name for name in names if name not in present]
    near = [name for name in absent if any(name.split()[0] in other for other in present)]
    name = rng.choice(near if near and rng.random() < 0.7 else absent)
    return Pair(_short(EXIST.format(name)), "no")


def _relation(rng: random.Random, things: Things) -> Pair | None:
    if len(things) < 2:
        return None
    first, second = rng.sample(list(things), 2)
    edge, word = rng.choice(list(enumerate(RELATIONS, 3)))
    holds = first[edge] + first[edge + 2] < second[edge] + second[edge + 2]
    question = _short(RELATION.format(named(first), word, named(second)))
    return Pair(question, "yes" if holds else "no")


def _count(rng: random.Random, things: Things) -> Pair | None:
    return Pair(_short(COUNT), str(len(things)))


def _detail(rng: random.Random, things: Things) -> Pair | None:
    """A digit that can be read, else any: it has to learn what it cannot know."""
    if not things:
        return None
    thing = rng.choice([thing for thing in things if thing[7] > 0] or things)
    return Pair(_short(DETAIL.format(named(thing))), str(int(thing[2])), thing)


ASK = {
    "locate": _locate,
    "locate_color": _locate_color,
    "locate_shape": _locate_shape,
    "locate_both": _locate_both,
    "name": _name,
    "list": _list,
    "exist": _exist,
    "relation": _relation,
    "count": _count,
    "detail": _detail,
}
