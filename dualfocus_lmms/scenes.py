"""Scenes to learn DualFocus on without photographs: shapes with a digit too small for the encoder to read.

Each scene is a large textured image with a few coloured shapes, each carrying one digit. In the whole
image, shrunk to the encoder's input, shapes and colours are plain and digits are not; zoomed, they are.
Three kinds of questions: `detail` (a digit: micro should win), `exist` (yes or no, as POPE asks) and `global`
(counts and relations: the macro pathway has all it needs). Scenes come from seeds; no two splits share one.

Scenes of other layouts, with questions about two things or with very small ones, are in
`dualfocus_lmms.scene_layouts`. The tasks ask about scenes and the small model learns from them, which is why
they live below both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dualfocus_lmms.boxes import WHOLE, Box
from dualfocus_lmms.errors import choose

VERSION = 2  # changes with anything that changes an image or a question
SIDE = 512  # pixels
SPLITS = ("train", "validation", "test")
COLORS = {"red": (214, 48, 49), "green": (46, 160, 67), "blue": (52, 101, 214), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle")
DIGITS = "0123456789"
# Questions about things by their names.
DETAIL = "What digit is on the {}?"
EXIST = "Is there a {} in the image?"
COUNT = "How many shapes are in the image?"
RELATION = "Is the {} {} the {}?"
RELATIONS = ("left of", "above")  # less along x, along y

Kind = Literal["detail", "exist", "global"]
PairKind = Literal["larger", "same"]  # of questions about two things, see `scene_layouts`
SHAPES_LAYOUT = "shapes"  # of the scenes that are made here


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape: its name is unique in its scene. x, y: centre; radius: half its side (pixels of a scene that
    is `scene_side` wide and high)."""

    color: str
    shape: str
    digit: str
    x: int
    y: int
    radius: int
    digit_height: int
    scene_side: int = SIDE

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def box(self) -> Box:
        """The shape's extent, fractions of the scene."""
        edges = (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)
        return Box(*(value / self.scene_side for value in edges))


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question with its answer and the things it is about; none means the scene as a whole."""

    kind: Kind | PairKind
    question: str
    answer: str
    things: tuple[Thing, ...] = ()

    @property
    def box(self) -> Box:
        """The region of all its things (section 3.2): the whole scene for a global question."""
        return Box.around(thing.box for thing in self.things) if self.things else WHOLE


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene by layout, split, seed and number: the same four give the same image and questions everywhere.

    side: its width and height in pixels.
    """

    split: str
    seed: int
    number: int
    things: tuple[Thing, ...]
    questions: tuple[SceneQuestion, ...]
    layout: str = SHAPES_LAYOUT
    side: int = SIDE

    @property
    def name(self) -> str:
        """Split, seed and number, with the layout before them where it is not SHAPES_LAYOUT."""
        layout = "" if self.layout == SHAPES_LAYOUT else f"{self.layout}-"
        return f"{layout}{self.split}-{self.seed}-{self.number}"

    def image(self) -> Image.Image:
        """The scene, RGB, side x side pixels."""
        image = _texture(np.random.default_rng(seed_of(f"texture {self.name}")), self.side)
        draw = ImageDraw.Draw(image)
        for thing in self.things:
            _draw(draw, thing)
        return image


def make_scene(split: str, seed: int, number: int) -> Scene:
    """Scene `number` of a split. UserError for an unknown split."""
    if split not in SPLITS:
        raise choose("split", split, SPLITS)
    rng = random.Random(seed_of(f"scene {VERSION} {split} {seed} {number}"))
    things = place(rng, draw_names(rng))
    questions = (*details(things), *_existence(rng, things), *_whole_scene(rng, things))
    return Scene(split, seed, number, things, questions)


def make_scenes(split: str, seed: int, count: int) -> Iterator[Scene]:
    """The first `count` scenes of a split."""
    return (make_scene(split, seed, number) for number in range(count))


def draw_names(rng: random.Random) -> list[tuple[str, str]]:
    """Colours and shapes of two to four things, all different."""
    return rng.sample([(color, shape) for color in COLORS for shape in SHAPES], rng.randint(2, 4))


def place(
    rng: random.Random, names: Sequence[tuple[str, str]], before: Sequence[Thing] = (), side: int = SIDE
) -> tuple[Thing, ...]:
    """Things with these names, `before` first, that do not touch, anywhere in a scene of `side` pixels."""
    things = list(before)
    for color, shape in names:
        while True:
            radius = rng.randint(36, 62)
            x, y = (rng.randint(radius + 4, side - radius - 4) for _ in range(2))
            if all(max(abs(x - other.x), abs(y - other.y)) > radius + other.radius + 6 for other in things):
                break
        things.append(Thing(color, shape, rng.choice(DIGITS), x, y, radius, rng.randint(16, 20), side))
    return tuple(things)


def details(things: Sequence[Thing]) -> Iterator[SceneQuestion]:
    """The digit of each thing."""
    for thing in things:
        yield SceneQuestion("detail", DETAIL.format(thing.name), thing.digit, (thing,))


def _existence(rng: random.Random, things: Sequence[Thing]) -> Iterator[SceneQuestion]:
    """One question with yes, one with no. What is absent has the colour of exactly one thing:
    a closer look at that thing shows that its shape is another."""
    thing = rng.choice(things)
    yield SceneQuestion("exist", EXIST.format(thing.name), "yes", (thing,))
    colors = [thing.color for thing in things]
    alone = [thing for thing in things if colors.count(thing.color) == 1]
    if alone:
        thing = rng.choice(alone)
        name = f"{thing.color} {rng.choice([shape for shape in SHAPES if shape != thing.shape])}"
        yield SceneQuestion("exist", EXIST.format(name), "no", (thing,))
    else:
        present = {thing.name for thing in things}
        names = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
        name = rng.choice([name for name in names if name not in present])
        yield SceneQuestion("exist", EXIST.format(name), "no")


def _whole_scene(rng: random.Random, things: Sequence[Thing]) -> Iterator[SceneQuestion]:
    """A count, whose region is the whole scene, and two relations, whose region holds both things."""
    yield SceneQuestion("global", COUNT, str(len(things)))
    for axis, word in enumerate(RELATIONS):
        first, second = rng.sample(list(things), 2)
        holds = (first.x, first.y)[axis] < (second.x, second.y)[axis]
        question = RELATION.format(first.name, word, second.name)
        yield SceneQuestion("global", question, "yes" if holds else "no", (first, second))


def _texture(pixels: np.random.Generator, side: int) -> Image.Image:
    """A soft grey-brown texture with fine grain, side x side pixels."""
    coarse = pixels.integers(110, 190, (8, 8, 3)).astype(np.float64)
    muted = (coarse.mean(2, keepdims=True) * 0.7 + coarse * 0.3).astype(np.uint8)
    soft = Image.fromarray(muted).resize((side, side), Image.Resampling.BICUBIC)
    grain = pixels.integers(0, 29, (side, side, 1), dtype=np.uint8)
    return Image.fromarray(np.asarray(soft) - np.uint8(14) + grain)  # 110..190 -14 +28: no value overflows


def _draw(draw: ImageDraw.ImageDraw, thing: Thing) -> None:
    left, top = thing.x - thing.radius, thing.y - thing.radius
    right, bottom = thing.x + thing.radius - 1, thing.y + thing.radius - 1
    color = COLORS[thing.color]
    if thing.shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=color)
    elif thing.shape == "square":
        draw.rectangle((left, top, right, bottom), fill=color)
    else:
        draw.polygon([(thing.x, top), (right, bottom), (left, bottom)], fill=color)
    ink = (20, 20, 20) if thing.color == "yellow" else (250, 250, 250)
    height = thing.y + (thing.radius // 4 if thing.shape == "triangle" else 0)
    font = ImageFont.load_default(size=thing.digit_height * 1.4)
    draw.text((thing.x, height), thing.digit, fill=ink, font=font, anchor="mm", stroke_width=1)


def seed_of(text: str) -> int:
    """A stable number for a text: the seed of what it names."""
    return int.from_bytes(text.encode(), "big")
