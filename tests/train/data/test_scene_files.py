"""Scenes as the files of Visual Genome."""

import json

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.scene_layouts import make_layouts
from dualfocus_lmms.scenes import SIDE, make_scenes
from dualfocus_lmms.train.data.scene_files import write_visual_genome


def test_the_files_have_visual_genomes_format(tmp_path):
    scenes = list(make_scenes("train", 0, 3))
    write_visual_genome(tmp_path, scenes, first_id=10)
    images, objects, questions = (
        json.loads((tmp_path / f"{name}.json").read_text())
        for name in ("image_data", "objects", "question_answers")
    )
    assert [image["image_id"] for image in images] == [10, 11, 12]
    for scene, entry, things, qas in zip(scenes, images, objects, questions, strict=True):
        with Image.open(tmp_path / "VG_100K" / f"{entry['image_id']}.jpg") as image:
            assert image.size == (entry["width"], entry["height"]) == (SIDE, SIDE)
        assert [record["names"] for record in things["objects"]] == [[thing.name] for thing in scene.things]
        assert [qa["answer"] for qa in qas["qas"]] == [question.answer for question in scene.questions]
        known = {record["object_id"] for record in things["objects"]}
        assert all(record["object_id"] in known for qa in qas["qas"] for record in qa["q_objects"])
    with pytest.raises(UserError):
        write_visual_genome(tmp_path, scenes)


@pytest.mark.parametrize("layout", ["apart", "tiny"])
def test_other_layouts_have_their_own_size_and_the_things_of_a_question(tmp_path, layout):
    (scene,) = make_layouts(layout, "train", 0, 1)
    write_visual_genome(tmp_path, [scene])
    (image,), (qas,) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("image_data", "question_answers")
    )
    assert (image["width"], image["height"]) == (scene.side, scene.side)
    for qa, question in zip(qas["qas"], scene.questions, strict=True):
        assert [record["names"] for record in qa["q_objects"]] == [[thing.name] for thing in question.things]
