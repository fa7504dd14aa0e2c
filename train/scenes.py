"""Scenes to learn DualFocus on without any photo: shapes with a digit too small for the encoder to read.

Each scene is a large textured picture with a few coloured shapes, each carrying one digit. In the whole
picture, shrunk to the encoder's input, shapes and colours are plain and digits are not; zoomed, they are.
Three kinds of questions: `detail` (a digit: micro should win), `exist` (yes or no, as POPE asks) and `global`
(counts and relations: macro should win). Scenes come from seeds; no two splits share one.

`write_visual_genome` writes them in Visual Genome's own files, so that the data builder is used end to end.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from dualfocus_lmms.boxes import WHOLE, Box
from dualfocus_lmms.errors import UserError, choose

VERSION = 1  # changes with anything that changes a picture or a question
SIDE = 512  # pixels
SPLITS = ("train", "validation", "test")
COLORS = {"red": (214, 48, 49), "green": (46, 160, 67), "blue": (52, 101, 214), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle")
DIGITS = "0123456789"

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
class Asked:
    """A question with its answer and the things it is about; none means the scene as a whole."""

    kind: Kind
    question: str
    answer: str
    things: tuple[Thing, ...] = ()

    @property
    def box(self) -> Box:
        """The region that holds all it is about (section 3.2): the whole scene for a global question."""
        if not self.things:
            return WHOLE
        corners = list(zip(*(thing.box.xyxy for thing in self.things), strict=True))
        return Box(min(corners[0]), min(corners[1]), max(corners[2]), max(corners[3]))


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene by split, seed and number: the same three give the same picture and questions everywhere."""

    split: str
    seed: int
    number: int
    things: tuple[Thing, ...]
    asked: tuple[Asked, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed}-{self.number}"

    def picture(self) -> Image.Image:
        """The scene, RGB, SIDE x SIDE pixels."""
        pixels = np.random.default_rng(_number(f"texture {self.name}"))
        picture = _texture(pixels)
        draw = ImageDraw.Draw(picture)
        for thing in self.things:
            _draw(draw, thing)
        return picture


def make_scene(split: str, seed: int, number: int) -> Scene:
    """Scene `number` of a split. UserError for an unknown split."""
    if split not in SPLITS:
        raise choose("split", split, SPLITS)
    rng = random.Random(_number(f"scene {VERSION} {split} {seed} {number}"))
    things = _place(rng)
    asked = (*_details(things), *_existence(rng, things), *_whole_scene(rng, things))
    return Scene(split, seed, number, things, asked)


def make_scenes(split: str, seed: int, count: int) -> Iterator[Scene]:
    """The first `count` scenes of a split."""
    return (make_scene(split, seed, number) for number in range(count))


def write_visual_genome(folder: str | Path, scenes: Sequence[Scene], first_id: int = 1) -> None:
    """Write scenes as a Visual Genome folder: VG_100K/<id>.png, image_data.json, objects.json and
    question_answers.json, where `q_objects` holds what each question is about (empty: the whole scene).

    first_id numbers the pictures; two folders that are used together need ranges that do not meet.
    """
    folder = Path(folder)
    pictures = folder / "VG_100K"
    if pictures.exists():
        raise UserError(f"{folder} holds pictures already: give a new folder.")
    pictures.mkdir(parents=True)
    images, objects, questions = [], [], []
    for image_id, scene in enumerate(tqdm(scenes, desc="scenes", leave=False), first_id):
        scene.picture().save(pictures / f"{image_id}.png", compress_level=1)
        images.append({"image_id": image_id, "width": SIDE, "height": SIDE, "url": f"VG_100K/{image_id}.png"})
        records = {thing: _record(thing, image_id, place) for place, thing in enumerate(scene.things)}
        objects.append({"image_id": image_id, "objects": list(records.values())})
        questions.append({"id": image_id, "qas": _qas(scene, image_id, records)})
    for name, content in (("image_data", images), ("objects", objects), ("question_answers", questions)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def _record(thing: Thing, image_id: int, place: int) -> dict[str, Any]:
    side = 2 * thing.radius
    return {
        "object_id": 100 * image_id + place,
        "names": [thing.name],
        "synsets": [],
        "x": thing.x - thing.radius,
        "y": thing.y - thing.radius,
        "w": side,
        "h": side,
    }


def _qas(scene: Scene, image_id: int, records: dict[Thing, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "qa_id": 100 * image_id + place,
            "image_id": image_id,
            "question": asked.question,
            "answer": asked.answer,
            "q_objects": [records[thing] for thing in asked.things],
            "a_objects": [],
            "kind": asked.kind,
        }
        for place, asked in enumerate(scene.asked)
    ]


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


def _details(things: Sequence[Thing]) -> Iterator[Asked]:
    for thing in things:
        yield Asked("detail", f"What digit is on the {thing.name}?", thing.digit, (thing,))


def _existence(rng: random.Random, things: Sequence[Thing]) -> Iterator[Asked]:
    """As many yes as no. What is not there can be anywhere: the region is the whole scene."""
    present = {thing.name for thing in things}
    absent = [f"{color} {shape}" for color in COLORS for shape in SHAPES if f"{color} {shape}" not in present]
    for thing, other in zip(things, rng.sample(absent, len(things)), strict=True):
        yield Asked("exist", f"Is there a {thing.name} in the image?", "yes", (thing,))
        yield Asked("exist", f"Is there a {other} in the image?", "no")


def _whole_scene(rng: random.Random, things: Sequence[Thing]) -> Iterator[Asked]:
    """Counts and relations; the region of both is the whole scene (appendix D)."""
    yield Asked("global", "How many shapes are in the image?", str(len(things)))
    first, second = rng.sample(list(things), 2)
    word, holds = rng.choice([("left of", first.x < second.x), ("above", first.y < second.y)])
    question = f"Is the {first.name} {word} the {second.name}?"
    yield Asked("global", question, "yes" if holds else "no")


def _texture(pixels: np.random.Generator) -> Image.Image:
    """A soft grey-brown texture with fine grain."""
    coarse = pixels.integers(110, 190, (8, 8, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = pixels.integers(-14, 15, (SIDE, SIDE, 1), dtype=np.int16)
    muted = soft.mean(2, keepdims=True) * 0.7 + soft * 0.3
    return Image.fromarray(np.clip(muted + grain, 0, 255).astype(np.uint8))


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
    draw.text((thing.x, height), thing.digit, fill=ink, font=font, anchor="mm")


def _number(text: str) -> int:
    """A stable number for a text: the seed of what it names."""
    return int.from_bytes(text.encode(), "big")
