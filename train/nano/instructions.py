"""Instruction data in LLaVA's own format: what the base model learned in stage 2, for the mixture of stage 3.

The paper mixes DualFocus samples with LLaVA-1.5's instruction data (section 4.2); this takes its place here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dualfocus_lmms.files import atomic_write
from dualfocus_lmms.scenes import SIDE, Scene
from dualfocus_lmms.train.nano.images import crop_rectangle, visible
from dualfocus_lmms.train.nano.questions import CROP_MIX, WHOLE_MIX, Pair, ask

ROUNDS = 4  # of a record
CROPS = 0.25  # share of the records about a crop


def write_instructions(
    folder: Path, scenes: Sequence[Scene], whole_mix: dict[str, float] = WHOLE_MIX
) -> None:
    """`instructions.json` and its images in `images`, one record for each scene."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    records = []
    for scene in tqdm(scenes, desc="instructions", leave=False):
        rng = random.Random(f"instructions {scene.name}")
        whole = rng.random() >= CROPS
        rectangle = (0, 0, SIDE, SIDE) if whole else crop_rectangle(rng, scene.things)
        things = [list(map(float, row)) for row in visible(scene.things, rectangle) if row[0] >= 0]
        name = f"{scene.name}.jpg"
        scene.image().crop(rectangle).save(images / name, quality=92)
        pairs = [ask(rng, things, whole_mix if whole else CROP_MIX) for _ in range(ROUNDS)]
        records.append({"id": scene.name, "image": name, "conversations": _turns(pairs)})
    atomic_write(folder / "instructions.json", json.dumps(records))


def _turns(rounds: Sequence[Pair]) -> list[dict[str, str]]:
    turns = []
    for number, pair in enumerate(rounds):
        turns.append({"from": "human", "value": pair.question if number else f"<image>\n{pair.question}"})
        turns.append({"from": "gpt", "value": pair.answer})
    return turns
