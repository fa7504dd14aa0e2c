"""Questions about images whose things are known: what the base model learns to answer.

Wordings of questions for boxes are LLaVA-1.5's own, the others those of the scenes. A thing is a row of
`images.Labelled.things`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import NamedTuple

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.models.families.llava import LLAVA
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.scenes import COUNT, DETAIL, EXIST, RELATION, RELATIONS, SHAPES
from dualfocus_lmms.train.nano.images import COLOR_NAMES

LOCATE = "Please provide the bounding box coordinate of the region this sentence describes: {}"
NAME = "Please provide a short description for this region: {}"
LIST = "Please provide a description for the image"
# Shares of the kinds of questions about whole scenes, of those that ask mostly for boxes, and about crops.
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
BOX_MIX = {
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
# Relations and counts need many more examples than boxes, once those are learned.
GLOBAL_MIX = {
    "locate": 0.20,
    "locate_color": 0.04,
    "locate_shape": 0.03,
    "locate_both": 0.08,
    "name": 0.06,
    "list": 0.09,
    "exist": 0.10,
    "relation": 0.26,
    "count": 0.12,
    "detail": 0.02,
}
CROP_MIX = {"detail": 0.6, "exist": 0.2, "relation": 0.1, "list": 0.1}

Things = Sequence[Sequence[float]]


class Pair(NamedTuple):
    """A question, its answer, and the one thing that both are about, if there is one."""

    question: str
    answer: str
    about: Sequence[float] | None = None


class Choice(NamedTuple):
    """A question that a kind allows about an image, and its share of that kind's questions."""

    share: float
    pair: Pair


def named(thing: Sequence[float]) -> str:
    return f"{COLOR_NAMES[int(thing[0])]} {SHAPES[int(thing[1])]}"


def ask(rng: random.Random, things: Things, mix: dict[str, float]) -> Pair:
    """A random question about an image with these things, of a kind that it allows."""
    while True:
        kind = rng.choices(list(mix), list(mix.values()))[0]
        choices = KINDS[kind](things)
        if choices:
            return rng.choices([choice.pair for choice in choices], [choice.share for choice in choices])[0]


def _equally(pairs: Sequence[Pair]) -> list[Choice]:
    return [Choice(1 / len(pairs), pair) for pair in pairs]


def _short(question: str) -> str:
    return f"{question}\n{SHORT_ANSWER}"


def _write_box(*things: Sequence[float]) -> str:
    """The box that holds them."""
    return LLAVA.box_format.write(Box.around(Box(*thing[3:7]) for thing in things), (1, 1))


def _locate(things: Things) -> list[Choice]:
    return _equally([Pair(LOCATE.format(named(thing)), _write_box(thing), thing) for thing in things])


def _locate_color(things: Things) -> list[Choice]:
    return _locate_by(things, 0, lambda thing: f"{COLOR_NAMES[int(thing[0])]} shape")


def _locate_shape(things: Things) -> list[Choice]:
    return _locate_by(things, 1, lambda thing: SHAPES[int(thing[1])])


def _locate_by(things: Things, column: int, phrase: Callable[[Sequence[float]], str]) -> list[Choice]:
    values = [thing[column] for thing in things]
    alone = [thing for thing in things if values.count(thing[column]) == 1]
    return _equally([Pair(LOCATE.format(phrase(thing)), _write_box(thing), thing) for thing in alone])


def _locate_both(things: Things) -> list[Choice]:
    pairs = [
        Pair(LOCATE.format(f"{named(first)} and the {named(second)}"), _write_box(first, second))
        for first, second in permutations(things, 2)
    ]
    return _equally(pairs)


def _name(things: Things) -> list[Choice]:
    return _equally([Pair(NAME.format(_write_box(thing)), named(thing), thing) for thing in things])


def _list(things: Things) -> list[Choice]:
    ordered = sorted(things, key=lambda thing: thing[3] + thing[5])
    return _equally([Pair(LIST, ", ".join(named(thing) for thing in ordered))] if things else [])


def _exist(things: Things) -> list[Choice]:
    """Half of the named things exist; most of the others share their colour with one that does."""
    present = [named(thing) for thing in things]
    names = [f"{color} {shape}" for color in COLOR_NAMES for shape in SHAPES]
    absent = [name for name in names if name not in present]
    near = [name for name in absent if any(name.split()[0] in other for other in present)]
    no = 0.5 if present else 1.0
    of_near, of_all = (0.7, 0.3) if near else (0.0, 1.0)
    choices = [
        Choice(0.5 / len(things), Pair(_short(EXIST.format(named(thing))), "yes", thing)) for thing in things
    ]
    for name in absent:
        share = of_all / len(absent) + (of_near / len(near) if name in near else 0.0)
        choices.append(Choice(no * share, Pair(_short(EXIST.format(name)), "no")))
    return choices


def _relation(things: Things) -> list[Choice]:
    return _equally(list(_relations(things)))


def _relations(things: Things) -> Iterator[Pair]:
    for first, second in permutations(things, 2):
        for edge, word in enumerate(RELATIONS, 3):
            holds = first[edge] + first[edge + 2] < second[edge] + second[edge + 2]
            question = _short(RELATION.format(named(first), word, named(second)))
            yield Pair(question, "yes" if holds else "no")


def _count(things: Things) -> list[Choice]:
    return _equally([Pair(_short(COUNT), str(len(things)))])


def _detail(things: Things) -> list[Choice]:
    """A readable digit, else any: the model has to learn how unsure it is of digits it cannot read."""
    chosen = [thing for thing in things if thing[7] > 0] or things
    return _equally(
        [Pair(_short(DETAIL.format(named(thing))), str(int(thing[2])), thing) for thing in chosen]
    )


# Every question of a kind about an image; none where the image does not allow it.
KINDS: dict[str, Callable[[Things], list[Choice]]] = {
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
