"""Drawn scenes in Visual Genome's own files, so that the data builder is used end to end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualfocus_lmms.errors import Interrupted, UserError
from dualfocus_lmms.files import atomic_write, new_folder
from dualfocus_lmms.scenes import SIDE, Scene, Thing


def write_visual_genome(folder: str | Path, scenes: Sequence[Scene], first_id: int = 1) -> None:
    """Write scenes as a Visual Genome folder: VG_100K/<id>.jpg, image_data.json, objects.json and
    question_answers.json, where `q_objects` holds what each question is about (empty: the whole scene).

    first_id numbers the images; two folders that are used together need ranges that do not meet. UserError
    when the folder holds images already or cannot be written.
    """
    folder = Path(folder)
    pictures = folder / "VG_100K"
    if pictures.exists():
        raise UserError(f"{folder} holds pictures already: give a new folder.")
    try:
        _write(folder, pictures, scenes, first_id)
    except KeyboardInterrupt as error:
        raise Interrupted(f"nothing is kept in {str(folder)!r}. The same command begins anew.") from error
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(folder)!r}: {error}. Give a new folder that can be written."
        ) from error


def _write(folder: Path, pictures: Path, scenes: Sequence[Scene], first_id: int) -> None:
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    with new_folder(
        pictures
    ) as partial:  # which comes last: without it nothing is in the way of the same call
        for image_id, scene in enumerate(tqdm(scenes, desc="scenes", leave=False), first_id):
            scene.picture().save(partial / f"{image_id}.jpg", quality=92)
            name = f"VG_100K/{image_id}.jpg"
            images.append({"image_id": image_id, "width": SIDE, "height": SIDE, "url": name})
            records = {thing: _record(thing, image_id, place) for place, thing in enumerate(scene.things)}
            objects.append({"image_id": image_id, "objects": list(records.values())})
            questions.append({"id": image_id, "qas": _qas(scene, image_id, records)})
        for name, content in (("image_data", images), ("objects", objects), ("question_answers", questions)):
            atomic_write(folder / f"{name}.json", json.dumps(content))


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
