"""Scenes to learn DualFocus on without photographs: shapes with a digit too small for the encoder to read.

Each scene is a large textured image with a few coloured shapes, each carrying one digit. In the whole
image, shrunk to the encoder's input, shapes and colours are plain and digits are not; zoomed, they are.
Three kinds of questions: `detail` (a digit: micro should win), `exist` (yes or no, as POPE asks) and `global`
(counts and relations: the macro pathway has all it needs). Scenes come from seeds; no two splits share one.

The tasks ask about them and the small model learns from them, which is why they live below both.
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


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape: its name is unique in its scene. x, y: centre; radius: half its side (pixels)."""

    color: str
    shape: str
    digit: str
    x: int
    y: int
    radius: int
    digit_height: int

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def box(self) -> Box:
        """The shape's extent, fractions of the scene."""
        edges = (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)
        return Box(*(value / SIDE for value in edges))


@dataclass(frozen=True, slots=True)
class SceneQuestion:
    """A question with its answer and the things it is about; none means the scene as a whole."""

    kind: Kind
    question: str
    answer: str
    things: tuple[Thing, ...] = ()

    @property
    def box(self) -> Box:
        """The region of all its things (section 3.2): the whole scene for a global question."""
        if not self.things:
            return WHOLE
        corners = list(zip(*(thing.box.xyxy for thing in self.things), strict=True))
        return Box(min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3]))


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene by split, seed and number: the same three give the same image and questions everywhere."""

    split: str
    seed: int
    number: int
    things: tuple[Thing, ...]
    questions: tuple[SceneQuestion, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed}-{self.number}"

    def image(self) -> Image.Image:
        """The scene, RGB, SIDE x SIDE pixels."""
        pixels = np.random.default_rng(_number(f"texture {self.name}"))
        image = _texture(pixels)
        draw = ImageDraw.Draw(image)
        for thing in self.things:
            _draw(draw, thing)
        return image


def make_scene(split: str, seed: int, number: int) -> Scene:
    """Scene `number` of a split. UserError for an unknown split."""
    if split not in SPLITS:
        raise choose("split", split, SPLITS)
    rng = random.Random(_number(f"scene {VERSION} {split} {seed} {number}"))
    things = _place(rng)
    questions = (*_details(things), *_existence(rng, things), *_whole_scene(rng, things))
    return Scene(split, seed, number, things, questions)


def make_scenes(split: str, seed: int, count: int) -> Iterator[Scene]:
    """The first `count` scenes of a split."""
    return (make_scene(split, seed, number) for number in range(count))


def _place(rng: random.Random) -> tuple[Thing, ...]:
    """Two to four things of different names that do not touch."""
    names = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], rng.randint(2, 4))
    things: list[Thing] = []
    for color, shape in names:
        while True:
            radius = rng.randint(36, 62)
            x, y = (rng.randint(radius + 4, SIDE - radius - 4) for _ in range(2))
            if all(max(abs(x - other.x), abs(y - other.y)) > radius + other.radius + 6 for other in things):
                break
        things.append(Thing(color, shape, rng.choice(DIGITS), x, y, radius, rng.randint(16, 20)))
    return tuple(things)


def _details(things: Sequence[Thing]) -> Iterator[SceneQuestion]:
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


def _texture(pixels: np.random.Generator) -> Image.Image:
    """A soft grey-brown texture with fine grain."""
    coarse = pixels.integers(110, 190, (8, 8, 3)).astype(np.float64)
    muted = (coarse.mean(2, keepdims=True) * 0.7 + coarse * 0.3).astype(np.uint8)
    soft = Image.fromarray(muted).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    grain = pixels.integers(0, 29, (SIDE, SIDE, 1), dtype=np.uint8)
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


def _number(text: str) -> int:
    """A stable number for a text: the seed of what it names."""
    return int.from_bytes(text.encode(), "big")
