"""Visual Genome's own files, and the questions of one image as samples. Knows nothing about many images.

    image_data.json, question_answers.json, objects.json                    needed
    attributes.json, region_descriptions.json, qa_to_region_mapping.json    used where they exist
    VG_100K/1.jpg, VG_100K_2/1.jpg or 1.jpg                                 the images

Versions 1.0, 1.2 and 1.4 are read alike; a field that is missing or has another type is not used.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from dualfocus_lmms.boxes import PADDING, Box, in_reading_order
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.prompts import MOST_REGIONS
from dualfocus_lmms.protocol import Protocol
from dualfocus_lmms.train.data.samples import SampleImage, TrainingSample, cut_out
from dualfocus_lmms.train.vg.config import VGConfig
from dualfocus_lmms.train.vg.json_array import JsonArray
from dualfocus_lmms.train.vg.objects import Scene, Thing, is_group
from dualfocus_lmms.train.vg.question_grounding import Dropped, Grounded, Hints, Reason, ground

NEEDED = ("image_data", "question_answers", "objects")
OPTIONAL = ("attributes", "region_descriptions")
MAPPING = "qa_to_region_mapping.json"
IMAGE_FOLDERS = ("VG_100K", "VG_100K_2", ".")
# What a record in another shape raises.
_BAD = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one question. box: rounded to two decimals; None exactly for a dropped one."""

    id: str
    image_id: int
    question: str
    answer: str
    result: Grounded | Dropped
    box: Box | None = None


@dataclass(frozen=True)
class Annotations:
    """The annotation files, by image. regions: the region of a question (question id, region id), sorted."""

    root: Path
    files: dict[str, JsonArray]
    regions: tuple[np.ndarray, np.ndarray]

    @classmethod
    def open(cls, root: Path, config: VGConfig, progress: Any = None) -> Annotations:
        """Find the records of each file in `root`; UserError when a needed file is missing."""
        for name in NEEDED:
            if not (root / f"{name}.json").is_file():
                hint = ": unzip the one that exists" if (root / f"{name}.json.zip").exists() else ""
                raise UserError(f"There is no {name}.json in {str(root)!r}{hint}. See docs/data.md.")
        files = {
            name: JsonArray(root / f"{name}.json", progress)
            for name in (*NEEDED, *OPTIONAL)
            if (root / f"{name}.json").is_file()
        }
        mapping = root / MAPPING
        regions = read_mapping(mapping) if config.use_regions and mapping.is_file() else _NO_REGIONS
        return cls(root, files, regions)

    def get(self, name: str, image_id: int) -> dict[str, Any]:
        """The record of an image in a file, empty when it has none."""
        return (self.files[name].get(image_id) if name in self.files else None) or {}

    def region_of(self, question_id: Any) -> int | None:
        """The id of the region that a question was asked about."""
        ids, regions = self.regions
        if not isinstance(question_id, int) or not len(ids):
            return None
        row = int(np.searchsorted(ids, question_id))
        return int(regions[row]) if row < len(ids) and ids[row] == question_id else None


_PAIR = re.compile(r'"?\b(\d{1,18})"?\s*:\s*"?(\d{1,18})\b')  # what fits into 64 bits
_NO_REGIONS = (np.empty(0, np.int64), np.empty(0, np.int64))


def read_mapping(path: Path, piece: int = 1 << 20) -> tuple[np.ndarray, np.ndarray]:
    """Question ids in ascending order and their region ids, from `{"question id": region id, ...}`."""
    pairs: list[np.ndarray] = []
    with open(path, encoding="utf-8", errors="replace") as file:
        rest = ""
        while text := file.read(piece):
            text = rest + text
            cut = text.rfind(",") + 1
            found = _PAIR.findall(text[:cut])
            pairs.append(np.array(found, dtype=np.int64).reshape(-1, 2))
            rest = text[cut:]
        pairs.append(np.array(_PAIR.findall(rest), dtype=np.int64).reshape(-1, 2))
    table = np.concatenate(pairs)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0].copy(), table[:, 1].copy()


def outcomes(image_id: int, annotations: Annotations, config: VGConfig) -> Iterator[Outcome]:
    """What becomes of each question of an image; a record that cannot be used gives one MALFORMED outcome."""
    try:
        image = _ImageRecords.read(image_id, annotations, config)
    except _BAD as error:
        yield Outcome(f"image-{image_id}", image_id, "", "", Dropped(Reason.MALFORMED, _why(error)))
        return
    kept: set[str] = set()
    for number, qa in enumerate(image.qas):
        outcome = image.outcome(number, qa, kept)
        if outcome.box is not None:
            kept.add(_key(outcome.question))
        yield outcome


@dataclass(frozen=True)
class _ImageRecords:
    """What all files hold about one image. size: (width, height) in pixels. regions: by region id."""

    id: int
    qas: list[Any]
    size: tuple[float, float]
    scene: Scene
    regions: dict[Any, dict[str, Any]]
    annotations: Annotations

    @classmethod
    def read(cls, image_id: int, annotations: Annotations, config: VGConfig) -> _ImageRecords:
        """The records of an image; one of _BAD when they cannot be used."""
        qas = annotations.get("question_answers", image_id)["qas"]
        data = annotations.get("image_data", image_id)
        size = (float(data["width"]), float(data["height"]))
        if not min(size) >= 1 or not isinstance(qas, list):
            raise ValueError("no size, or no list of questions")
        entries = annotations.get("region_descriptions", image_id).get("regions") or []
        regions = {_id(entry, "region_id"): entry for entry in entries if isinstance(entry, dict)}
        questions = [qa.get("question") for qa in qas if isinstance(qa, dict)]
        texts = [text for text in (*_phrases(regions), *questions) if isinstance(text, str)]
        scene = Scene(_things(image_id, annotations, size, config), texts, config)
        return cls(image_id, qas, size, scene, regions, annotations)

    def outcome(self, number: int, qa: Any, kept: set[str]) -> Outcome:
        """What becomes of question `number`; `kept` has the questions (`_key`) kept before."""
        name = f"vg-image-{self.id}-{number}"
        try:
            name = f"vg-{int(qa['qa_id'])}" if "qa_id" in qa else name
            question, answer = " ".join(qa["question"].split()), " ".join(qa["answer"].split())
            hints = self._hints(qa)
        except _BAD as error:
            return Outcome(name, self.id, "", "", Dropped(Reason.MALFORMED, _why(error)))
        if self.scene.config.drop_repeats and _key(question) in kept:
            return Outcome(name, self.id, question, answer, Dropped(Reason.REPEATED))
        result = ground(question, answer, self.scene.grown([*hints.question, *hints.answer]), hints)
        box = round_box(result.box) if isinstance(result, Grounded) else None
        return Outcome(name, self.id, question, answer, result, box)

    def _hints(self, qa: dict[str, Any]) -> Hints:
        """What the annotations say about a question: its objects where filled, its region where mapped."""
        config = self.scene.config
        by_id = {thing.id: thing for thing in self.scene.things}
        given: list[list[Thing]] = []
        for key in ("q_objects", "a_objects") if config.use_given else ():
            entries = [entry for entry in qa.get(key) or [] if isinstance(entry, dict)]
            things = [
                by_id.get(_id(entry, "object_id")) or _thing(entry, self.size, {}, config)
                for entry in entries
            ]
            given.append([thing for thing in things if thing is not None])
        question, answer = given or ([], [])
        region = self.regions.get(self.annotations.region_of(qa.get("qa_id")))
        if region is None:
            return Hints(question, answer)
        left, top, right, bottom = _edges(region, self.size)
        if right <= left or bottom <= top:
            return Hints(question, answer)
        width, height = self.size
        box = Box(left / width, top / height, right / width, bottom / height).clip()
        return Hints(question, answer, box, str(region.get("phrase") or ""))


def _key(question: str) -> str:
    """The question without letter case and closing marks: equal for repeated questions."""
    return question.lower().rstrip(" ?.!")


def _phrases(regions: dict[Any, dict[str, Any]]) -> list[Any]:
    return [region.get("phrase") for region in regions.values()]


def round_box(box: Box) -> Box:
    """`box` to the two decimals that a model writes, rounded outwards: it still encloses everything."""
    cents = [round(value * 100, 6) for value in box.xyxy]  # without the rounding error of 0.29 * 100
    x0, y0 = (math.floor(value) / 100 for value in cents[:2])
    x1, y1 = (math.ceil(value) / 100 for value in cents[2:])
    return Box(x0, y0, x1, y1).clip()


def _things(
    image_id: int, annotations: Annotations, size: tuple[float, float], config: VGConfig
) -> list[Thing]:
    """The objects of an image with their attributes; those too small or outside are left out."""
    attributes: dict[Any, list[str]] = {}
    for entry in annotations.get("attributes", image_id).get("attributes") or []:
        if isinstance(entry, dict) and isinstance(entry.get("attributes"), list):
            attributes.setdefault(_id(entry, "object_id"), []).extend(map(str, entry["attributes"]))
    entries = annotations.get("objects", image_id).get("objects") or []
    found = [thing for entry in entries if (thing := _thing(entry, size, attributes, config))]
    return list({thing.id: thing for thing in found}.values())


def _thing(
    entry: Any, size: tuple[float, float], attributes: dict[Any, list[str]], config: VGConfig
) -> Thing | None:
    """One object, or None when it has no id, no name or no box of at least `min_object_pixels`."""
    try:
        number = _id(entry, "object_id")
        names = entry.get("names") or [entry["name"]]
        left, top, right, bottom = _edges(entry, size)
        sides = (right - left, bottom - top)
        large = all(side >= config.min_object_pixels for side in sides)  # False for NaN
        if not large or not isinstance(number, int):
            return None
        names = [str(name) for name in names if str(name).strip()]
        lemmas = [lemma for synset in entry.get("synsets") or [] if (lemma := _lemma(synset))]
    except _BAD:
        return None
    if not names:
        return None
    width, height = size
    return Thing(
        id=number,
        box=Box(left / width, top / height, right / width, bottom / height).clip(),
        names=tuple(dict.fromkeys([*names, *lemmas])),
        attributes=tuple(attributes.get(number, ())),
        group=is_group(names, config.words),
    )


def _id(entry: dict[str, Any], name: str) -> Any:
    """The id in a record: `name`, which version 1.0 calls just "id"."""
    return entry.get(name, entry.get("id"))


def _edges(entry: dict[str, Any], size: tuple[float, float]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of an object or region, cut to the image."""
    left, top = float(entry["x"]), float(entry["y"])
    right = left + float(entry["w"] if "w" in entry else entry["width"])
    bottom = top + float(entry["h"] if "h" in entry else entry["height"])
    width, height = size
    return max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height)


def _lemma(synset: Any) -> str:
    """The word of a synset: "tennis racket" of "tennis_racket.n.01"."""
    name = synset.get("synset_name", "") if isinstance(synset, dict) else str(synset)
    return name.split(".")[0].replace("_", " ")


def image_path(image_id: int, annotations: Annotations) -> Path | None:
    """The path of an image, or None when it is missing."""
    names = [f"{image_id}.jpg", f"{image_id}.png"]
    url = annotations.get("image_data", image_id).get("url")
    if isinstance(url, str):
        names.append(PurePosixPath(url).name)
    paths = (annotations.root / folder / name for name in names for folder in IMAGE_FOLDERS)
    return next((path for path in paths if os.path.isfile(path)), None)


def separate_regions(outcome: Outcome) -> tuple[Box, ...]:
    """The regions of a kept question for regions=separate, in reading order: what it needs one by one, and
    what overlaps as one. One region where there would be more than MOST_REGIONS."""
    assert isinstance(outcome.result, Grounded)
    apart: list[Box] = []
    for box in map(round_box, outcome.result.boxes):
        while overlapping := [other for other in apart if box.iou(other) > 0]:
            apart = [other for other in apart if other not in overlapping]
            box = Box.around([box, *overlapping])
        apart.append(box)
    return tuple(in_reading_order(apart)) if len(apart) <= MOST_REGIONS else (Box.around(apart),)


def make_samples(
    kept: Sequence[Outcome],
    annotations: Annotations,
    config: VGConfig,
    protocol: Protocol,
    separate: bool = False,
) -> tuple[list[TrainingSample], Dropped | None]:
    """The samples of one image's kept questions, or why the image cannot be used (then there are none).

    separate: with each region by itself, too.
    """
    image_id = kept[0].image_id
    path = image_path(image_id, annotations)
    if path is None:
        return [], Dropped(Reason.NO_IMAGE, f"{image_id}.jpg")
    try:
        original = SampleImage(path.read_bytes(), path.name)
        image = original.decode()
    except (OSError, UserError) as error:
        return [], Dropped(Reason.BAD_IMAGE, str(error))
    data = annotations.get("image_data", image_id)
    stretch = (image.width / float(data["width"])) / (image.height / float(data["height"]))
    if abs(stretch - 1) > 0.02:
        sizes = f"{image.width} x {image.height}, annotated as {data['width']} x {data['height']}"
        return [], Dropped(Reason.BAD_IMAGE, f"{path.name} is {sizes}")
    return [_sample(outcome, original, image, config, protocol, separate) for outcome in kept], None


def _sample(
    outcome: Outcome,
    original: SampleImage,
    image: Image.Image,
    config: VGConfig,
    protocol: Protocol,
    separate: bool,
) -> TrainingSample:
    """One sample, with its regions cut out as at inference."""
    assert outcome.box is not None
    boxes = separate_regions(outcome) if separate else ()
    return TrainingSample(
        outcome.id,
        original,
        outcome.question,
        outcome.answer,
        outcome.box,
        _crop(outcome.id, outcome.box, image, config, protocol),
        f"vg:{outcome.image_id}",
        boxes,
        tuple(
            _crop(f"{outcome.id}-{number}", box.grown(PADDING), image, config, protocol)
            for number, box in enumerate(boxes, 1)
        ),
    )


def _crop(name: str, box: Box, image: Image.Image, config: VGConfig, protocol: Protocol) -> SampleImage:
    """The file of a region, in the format of the settings."""
    if config.crop_format == "png":
        return cut_out(box, image, protocol, f"{name}.png")
    return cut_out(box, image, protocol, f"{name}.jpg", format="JPEG", quality=config.crop_quality)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
