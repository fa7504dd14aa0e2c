"""Scenes and crops of them at the encoder's resolution, with their labels, for the first two stages.

Rendered once into files of numbers, so that an epoch costs no drawing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dualfocus_lmms.files import replacing
from dualfocus_lmms.models.tiny.nano import IMAGE_MEAN, SIDE
from dualfocus_lmms.scene_layouts import READABLE
from dualfocus_lmms.scenes import COLORS, SHAPES, Scene, Thing, make_scene
from dualfocus_lmms.scenes import SIDE as SCENE_SIDE
from dualfocus_lmms.zoom import pad_to_square

MOST = 4  # things in an image
PER_FILE = 500  # scenes
_PAD: Any = tuple(int(value * 255) for value in IMAGE_MEAN)
COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images with their things.

    pixels: (N, SIDE, SIDE, 3) uint8. things: (N, MOST, 8) float32, for each thing the numbers of its colour
    and shape, its digit, its box x0, y0, x1, y1 as fractions of the image, and whether the digit can be
    read (1 or 0); colour -1 where there are fewer. whole: (N,) bool, whether it is a scene and not a crop.
    """

    pixels: np.ndarray
    things: np.ndarray
    whole: np.ndarray

    def __len__(self) -> int:
        return len(self.whole)


def labelled(folder: str | Path, scenes: int, split: str = "train", seed: int = 0) -> Labelled:
    """The first `scenes` scenes of a split, a multiple of PER_FILE: each once whole and once as a crop.

    Files that are in the folder already are not drawn again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for start in tqdm(range(0, scenes, PER_FILE), desc="images", leave=False):
        path = folder / f"{split}-{seed}-{start:06d}.npz"
        if not path.exists():
            drawn: Any = draw_labelled([make_scene(split, seed, start + n) for n in range(PER_FILE)])
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **drawn)
        with np.load(path) as part:
            parts.append({name: part[name] for name in part.files})
    return Labelled(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def draw_labelled(scenes: Sequence[Scene]) -> dict[str, np.ndarray]:
    """The fields of `Labelled` for scenes, each once whole and once as a crop."""
    pixels, things, whole = [], [], []
    for scene in scenes:
        image = scene.image()
        rng = random.Random(f"crop {scene.name}")
        full = (0, 0, SCENE_SIDE, SCENE_SIDE)
        for rectangle in (full, crop_rectangle(rng, scene.things)):
            pixels.append(shrink(image.crop(rectangle)))
            things.append(visible(scene.things, rectangle))
            whole.append(rectangle == full)
    return {"pixels": np.stack(pixels), "things": np.stack(things), "whole": np.array(whole)}


def shrink(image: Image.Image) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8 of an image, as the image processor pads and resizes it."""
    square = pad_to_square(image, _PAD)
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def crop_rectangle(rng: random.Random, things: Sequence[Thing]) -> tuple[int, int, int, int]:
    """Where to crop: around one thing, or around two, never exactly."""
    if rng.random() < 0.7:
        chosen, least, most = [rng.choice(things)], -0.1, 0.3
    else:
        chosen, least, most = rng.sample(list(things), 2), -0.05, 0.2
    x0, y0 = (min(getattr(t, axis) - t.radius for t in chosen) for axis in "xy")
    x1, y1 = (max(getattr(t, axis) + t.radius for t in chosen) for axis in "xy")
    grow = [rng.uniform(least, most) * (x1 - x0 if side % 2 == 0 else y1 - y0) for side in range(4)]
    return (
        max(round(x0 - grow[0]), 0),
        max(round(y0 - grow[1]), 0),
        min(round(x1 + grow[2]), SCENE_SIDE),
        min(round(y1 + grow[3]), SCENE_SIDE),
    )


def visible(things: Sequence[Thing], rectangle: tuple[int, int, int, int]) -> np.ndarray:
    """(MOST, 8): the things of which a rectangle of the scene shows at least 60%."""
    left, top, right, bottom = rectangle
    width, height = right - left, bottom - top
    side = max(width, height)
    shift = ((side - width) // 2 - left, (side - height) // 2 - top)
    rows = np.full((MOST, 8), -1.0, dtype=np.float32)
    row = 0
    for thing in things:
        x0, x1 = max(thing.x - thing.radius, left), min(thing.x + thing.radius, right)
        y0, y1 = max(thing.y - thing.radius, top), min(thing.y + thing.radius, bottom)
        if x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) < 0.6 * (2 * thing.radius) ** 2:
            continue
        half = thing.digit_height / 2
        inside = (
            left <= thing.x - half
            and thing.x + half <= right
            and top <= thing.y - half
            and thing.y + half <= bottom
        )
        readable = inside and thing.digit_height * SIDE / side >= READABLE
        box = ((x0 + shift[0]) / side, (y0 + shift[1]) / side, (x1 + shift[0]) / side, (y1 + shift[1]) / side)
        kind = (COLOR_NAMES.index(thing.color), SHAPES.index(thing.shape), int(thing.digit))
        rows[row] = (*kind, *box, readable)
        row += 1
    return rows


def flip(pixels: np.ndarray, things: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image and its things, mirrored; mirrored digits count as unreadable."""
    mirrored = things.copy()
    present = things[:, 0] >= 0
    mirrored[present, 3], mirrored[present, 5] = 1 - things[present, 5], 1 - things[present, 3]
    mirrored[present, 7] = 0
    return pixels[:, ::-1], mirrored
