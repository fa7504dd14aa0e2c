"""Drawn scenes in Visual Genome's own files, so that they go through the data builder, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualfocus_lmms.errors import Interrupted, UserError
from dualfocus_lmms.files import atomic_write, new_folder
from dualfocus_lmms.scenes import Scene, Thing


def write_visual_genome(folder: str | Path, scenes: Sequence[Scene], first_id: int = 1) -> None:
    """Write scenes as a Visual Genome folder: VG_100K/<id>.jpg, image_data.json, objects.json and
    question_answers.json, where `q_objects` holds what each question is about (empty: the whole scene).

    first_id numbers the images; two folders that are used together need ranges that do not meet. UserError
    when the folder holds images already or cannot be written.
    """
    folder = Path(folder)
    image_folder = folder / "VG_100K"
    if image_folder.exists():
        raise UserError(f"{folder} holds images already: give a new folder.")
    try:
        _write(folder, image_folder, scenes, first_id)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"nothing is kept in {str(folder)!r}. Run the same command to start again."
        ) from error
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(folder)!r}: {error}. Give a new folder that can be written."
        ) from error


def _write(folder: Path, image_folder: Path, scenes: Sequence[Scene], first_id: int) -> None:
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    # The folder of images comes last: until it is there, nothing is in the way of the same call.
    with new_folder(image_folder) as partial:
        for image_id, scene in enumerate(tqdm(scenes, desc="scenes", leave=False), first_id):
            scene.image().save(partial / f"{image_id}.jpg", quality=92)
            name = f"VG_100K/{image_id}.jpg"
            images.append({"image_id": image_id, "width": scene.side, "height": scene.side, "url": name})
            records = {thing: _record(thing, image_id, index) for index, thing in enumerate(scene.things)}
            objects.append({"image_id": image_id, "objects": list(records.values())})
            questions.append({"id": image_id, "qas": _qas(scene, image_id, records)})
        for name, content in (("image_data", images), ("objects", objects), ("question_answers", questions)):
            atomic_write(folder / f"{name}.json", json.dumps(content))


def _record(thing: Thing, image_id: int, index: int) -> dict[str, Any]:
    side = 2 * thing.radius
    return {
        "object_id": 100 * image_id + index,
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
            "qa_id": 100 * image_id + index,
            "image_id": image_id,
            "question": question.question,
            "answer": question.answer,
            "q_objects": [records[thing] for thing in question.things],
            "a_objects": [],
            "kind": question.kind,
        }
        for index, question in enumerate(scene.questions)
    ]
