"""df_nano*: questions about drawn scenes, which need no file and no network."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image

from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.scene_layouts import VERSION as LAYOUTS_VERSION
from dualfocus_lmms.scene_layouts import Layout, make_layouts, scene_named
from dualfocus_lmms.scenes import VERSION, Kind, Scene, make_scenes
from dualfocus_lmms.tasks.common.sources import Doc, build_dataset, placeholder, usable

if TYPE_CHECKING:
    from datasets import Dataset

SEED = 0
SCENES = 510  # of a split: 4,051 questions in the test split, 1,501 of them details
PAIR_SCENES = 450  # of a layout with pairs: 600 questions
TINY_SCENES = 200  # 600 questions in the test split
DATASET_KWARGS = placeholder("validation", "test")


def detail(dataset: Dataset) -> Dataset:
    """`process_docs` of df_nano_detail: a digit too small to read in the whole scene."""
    return _documents(dataset, "detail")


def exist(dataset: Dataset) -> Dataset:
    """`process_docs` of df_nano_exist: whether something exists; half of the answers are yes."""
    return _documents(dataset, "exist")


def whole(dataset: Dataset) -> Dataset:
    """`process_docs` of df_nano_global: how many things there are, and how they lie to each other."""
    return _documents(dataset, "global")


def _documents(dataset: Dataset, kind: Kind) -> Dataset:
    split = str(dataset.split)
    return build_dataset(lambda: questions(split, kind))


def questions(split: str, kind: Kind) -> list[Doc]:
    """The questions of one kind about the first SCENES scenes of a split, scene after scene.

    image: the scene's name. box: the region that the question is about, [x0, y0, x1, y1], fractions of the
    image. scene: its number. version: the scenes' own. UserError for an unknown split.
    """
    return [
        {
            "image": scene.name,
            "question": question.question,
            "answers": [question.answer],
            "box": list(question.box.xyxy),
            "kind": kind,
            "scene": scene.number,
            "version": VERSION,
        }
        for scene in _scenes(split)
        for question in scene.questions
        if question.kind == kind
    ]


@lru_cache(maxsize=2)  # three tasks ask about the same scenes, and their answers are scored once more
def _scenes(split: str) -> tuple[Scene, ...]:
    return tuple(make_scenes(split, SEED, SCENES))


def near(dataset: Dataset) -> Dataset:
    """`process_docs` of df_nano_pairs_near: two things that one region shows well enough."""
    return build_dataset(lambda: layout_questions(str(dataset.split), "near", PAIR_SCENES))


def apart(dataset: Dataset) -> Dataset:
    """`process_docs` of df_nano_pairs_apart: two things that need a region each."""
    return build_dataset(lambda: layout_questions(str(dataset.split), "apart", PAIR_SCENES))


def tiny(dataset: Dataset) -> Dataset:
    """`process_docs` of df_nano_tiny: a digit on a thing too small to be located well in the whole scene."""
    return build_dataset(lambda: layout_questions(str(dataset.split), "tiny", TINY_SCENES))


def layout_questions(split: str, layout: Layout, scenes: int) -> list[Doc]:
    """The questions about the first scenes of a split in a layout, scene after scene.

    As `questions` returns them; kind is of the question, and boxes has the region of each thing that it is
    about, in the order in which it names them: `box` is around all of them.
    """
    return [
        {
            "image": scene.name,
            "question": question.question,
            "answers": [question.answer],
            "box": list(question.box.xyxy),
            "boxes": [list(thing.box.xyxy) for thing in question.things],
            "kind": question.kind,
            "scene": scene.number,
            "version": LAYOUTS_VERSION,
        }
        for scene in make_layouts(layout, split, SEED, scenes)
        for question in scene.questions
    ]


def image(doc: Doc) -> list[Image.Image]:
    """`doc_to_visual`: the scene. Its questions share one image: it must not be changed."""
    return [_draw(doc["image"])]


@lru_cache(maxsize=16)  # a scene's questions follow each other
def _draw(name: str) -> Image.Image:
    return scene_named(name).image()


def prompt(doc: Doc) -> str:
    """The question and LLaVA's short-answer instruction."""
    return f"{usable(doc)['question']}\n{SHORT_ANSWER}"
