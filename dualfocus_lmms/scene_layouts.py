"""Scenes of other layouts than `scenes` has: for questions about two things, and about very small ones.

What a layout needs, for an encoder that sees ENCODER_SIDE x ENCODER_SIDE pixels:

- `near`: two things beside each other. One region around both shows both digits.
- `apart`: two things so far from each other that no region around both shows a digit; the region of each
  does. The test bed of `regions=separate`.
- `tiny`: one thing in a scene twice as wide and high, in which things are 7 to 12 encoder pixels wide: less
  than a patch of the small model. A region that is found in the whole scene is rough; in its crop the thing
  can be found again. The test bed of a second zoom.

Questions about two things: which digit is larger, and whether both are the same. All of it has a version of
its own, so that the scenes of `scenes` stay what they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, get_args

from dualfocus_lmms import scenes
from dualfocus_lmms.boxes import PADDING, Box
from dualfocus_lmms.errors import choose
from dualfocus_lmms.scenes import (
    DIGITS,
    SHAPES_LAYOUT,
    SIDE,
    SPLITS,
    PairKind,
    Scene,
    SceneQuestion,
    Thing,
    details,
    draw_names,
    make_scene,
    place,
    seed_of,
)

VERSION = 1  # changes with anything that changes an image or a question of these layouts
Layout = Literal["near", "apart", "tiny"]
LAYOUTS = (SHAPES_LAYOUT, *get_args(Layout))
TINY_SIDE = 2 * SIDE
ENCODER_SIDE = 96  # pixels of the encoder that the scenes are made for
READABLE = 6.5  # encoder pixels a digit needs
UNREADABLE = 5.5  # so few are too few
# Asked about a scene with the number n: KINDS_OF[n % 3]. The digits are the same only where the larger one is
# not requested, so that half of the answers about "same" are yes.
KINDS_OF: tuple[tuple[PairKind, ...], ...] = (("same",), ("larger", "same"), ("larger",))
LARGER = "Which digit is larger, the {}'s or the {}'s?"
SAME = "Do the {} and the {} show the same digit?"


def make_layout(layout: str, split: str, seed: int, number: int) -> Scene:
    """Scene `number` of a split in a layout. UserError for an unknown layout or split."""
    if layout not in LAYOUTS:
        raise choose("layout", layout, LAYOUTS)
    if layout == SHAPES_LAYOUT:
        return make_scene(split, seed, number)
    if split not in SPLITS:
        raise choose("split", split, SPLITS)
    rng = random.Random(seed_of(f"{layout} scene {VERSION} {split} {seed} {number}"))
    names = draw_names(rng)
    if layout == "tiny":
        things = place(rng, names, side=TINY_SIDE)
        return Scene(split, seed, number, things, tuple(details(things)), layout, TINY_SIDE)
    asked = KINDS_OF[number % len(KINDS_OF)]
    pair = _pair(rng, names[:2], layout, same="larger" not in asked)
    things = place(rng, names[2:], before=pair)
    return Scene(split, seed, number, things, tuple(_about(rng, pair, asked)), layout)


def version_of(layout: str) -> int:
    """The version of the scenes of a layout."""
    return scenes.VERSION if layout == SHAPES_LAYOUT else VERSION


def make_layouts(layout: str, split: str, seed: int, count: int) -> Iterator[Scene]:
    """The first `count` scenes of a split in a layout."""
    return (make_layout(layout, split, seed, number) for number in range(count))


def scene_named(name: str) -> Scene:
    """The scene whose `Scene.name` is given."""
    *layout, split, seed, number = name.split("-")
    return make_layout(layout[0] if layout else SHAPES_LAYOUT, split, int(seed), int(number))


def seen_height(thing: Thing, region: Box) -> float:
    """Encoder pixels of a thing's digit in the crop of a region, which becomes a square."""
    side = max(region.x1 - region.x0, region.y1 - region.y0) * thing.scene_side
    return thing.digit_height * ENCODER_SIDE / side


def _pair(rng: random.Random, names: list[tuple[str, str]], layout: str, same: bool) -> tuple[Thing, ...]:
    """Two things, near or apart, whose digits are the same or differ."""
    digits = rng.sample(DIGITS, 1) * 2 if same else rng.sample(DIGITS, 2)
    while True:
        things = place(rng, names)
        around = Box.around(thing.box for thing in things)
        if layout == "near":
            fits = all(seen_height(thing, around.grown(PADDING)) >= READABLE for thing in things)
        else:
            fits = all(seen_height(thing, around) <= UNREADABLE for thing in things)
        if fits:
            return tuple(replace(one, digit=digit) for one, digit in zip(things, digits, strict=True))


def _about(
    rng: random.Random, pair: tuple[Thing, ...], kinds: tuple[PairKind, ...]
) -> Iterator[SceneQuestion]:
    """Questions of these kinds about two things, named in any order."""
    digits = [thing.digit for thing in pair]
    for kind in kinds:
        things = tuple(rng.sample(pair, 2))
        wording, answer = (
            (LARGER, max(digits)) if kind == "larger" else (SAME, "yes" if digits[0] == digits[1] else "no")
        )
        yield SceneQuestion(kind, wording.format(*(thing.name for thing in things)), answer, things)
