"""Drawn scenes in Visual Genome's own files, so that they go through the data builder, too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualfocus_lmms.errors import Interrupted, UserError
from dualfocus_lmms.files import atomic_write, new_folder, replacing
from dualfocus_lmms.json_text import Kind
from dualfocus_lmms.scene_layouts import version_of
from dualfocus_lmms.scenes import Scene, Thing

_CLAIM: Kind[dict[str, Any]] = Kind(dict[str, Any])


def write_visual_genome(folder: str | Path, scenes: Sequence[Scene], first_id: int = 1) -> None:
    """Write scenes as a Visual Genome folder: VG_100K/<id>.jpg, image_data.json, objects.json and
    question_answers.json, where `q_objects` holds what each question is about (empty: the whole scene).

    first_id numbers the images; two folders that are used together need ranges that do not meet. Called again
    with the same scenes, it goes on after an interruption and leaves a finished folder alone. UserError when
    the folder holds other images or cannot be written.
    """
    folder = Path(folder)
    image_folder = folder / "VG_100K"
    numbered = dict(enumerate(scenes, first_id))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, numbered)
        if not image_folder.exists():
            with new_folder(image_folder, keep=True) as partial:
                _draw(partial, numbered)
                _annotate(folder, numbered)
    except KeyboardInterrupt as error:
        finished = len(list(image_folder.with_name("VG_100K.partial").glob("*.jpg")))
        raise Interrupted(
            f"{finished:,} of {len(scenes):,} scenes are drawn. They are kept in {str(folder)!r}; run the "
            "same command to resume."
        ) from error
    except OSError as error:
        raise UserError(
            f"Cannot write to {str(folder)!r}: {error}. Run the same command again to resume, or give a new "
            "folder that can be written."
        ) from error


def _claim(folder: Path, numbered: dict[int, Scene]) -> None:
    """Write which scenes the folder is for; UserError where it is for others or holds other images."""
    path = folder / "scenes.json"
    scenes = {str(image_id): scene.name for image_id, scene in numbered.items()}
    claim = {
        "versions": {scene.layout: version_of(scene.layout) for scene in numbered.values()},
        "scenes": scenes,
    }
    if path.exists():
        if _CLAIM.read(path, "Give a new folder.") != claim:
            raise UserError(f"{str(folder)!r} holds other scenes: give a new folder.")
    elif (folder / "VG_100K").exists():
        raise UserError(f"{str(folder)!r} holds images already: give a new folder.")
    else:
        atomic_write(path, json.dumps(claim))


def _draw(folder: Path, numbered: dict[int, Scene]) -> None:
    """Write the image of each scene that is not there yet."""
    for image_id, scene in tqdm(numbered.items(), desc="scenes", leave=False):
        path = folder / f"{image_id}.jpg"
        if not path.exists():
            with replacing(path) as temporary:
                scene.image().save(temporary, "JPEG", quality=92)


def _annotate(folder: Path, numbered: dict[int, Scene]) -> None:
    """Write the three annotation files."""
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    questions: list[dict[str, Any]] = []
    for image_id, scene in numbered.items():
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
