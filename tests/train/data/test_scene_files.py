"""Scenes as the files of Visual Genome."""

import json
import shutil

import pytest
from killed import content, kill
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.errors import Interrupted
from dualfocus_lmms.scene_layouts import make_layouts
from dualfocus_lmms.scenes import SIDE, Scene, make_scenes
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


def test_a_finished_folder_is_left_alone_and_other_scenes_are_refused(tmp_path, monkeypatch):
    scenes = list(make_scenes("train", 0, 2))
    write_visual_genome(tmp_path, scenes)
    before = content(tmp_path)
    monkeypatch.setattr(Scene, "image", lambda _: pytest.fail("drawn again"))
    write_visual_genome(tmp_path, scenes)
    for others, first_id in ((scenes, 5), (scenes[:1], 1), (list(make_scenes("train", 1, 2)), 1)):
        with pytest.raises(UserError, match="other scenes"):
            write_visual_genome(tmp_path, others, first_id)
    assert content(tmp_path) == before
    (tmp_path / "scenes.json").unlink()
    with pytest.raises(UserError, match="images already"):
        write_visual_genome(tmp_path, scenes)


def test_the_command_goes_on_after_a_kill_and_draws_nothing_twice(run_command, tmp_path):
    command = ["data", "scenes", "--split", "validation", "--seed", "3", "--count", "40"]
    partial = tmp_path / "killed" / "VG_100K.partial"
    kill(
        ["-m", "dualfocus_lmms", *command, str(tmp_path / "killed")],
        lambda: len(list(partial.glob("*.jpg"))) >= 3,
    )
    drawn = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.jpg")}
    assert 3 <= len(drawn) < 40
    (partial / ".40.0123456789abcdef.tmp").write_bytes(b"half")  # of an image
    (partial / "2.jpg").unlink()  # the last one in time need not be the last by number
    other = run_command("dualfocus", *command, "--seed", "4", str(tmp_path / "killed"))
    assert other.returncode == 2
    assert "new folder" in other.stderr
    for name in ("killed", "whole"):
        assert run_command("dualfocus", *command, str(tmp_path / name)).returncode == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    images = tmp_path / "killed" / "VG_100K"
    assert len(list(images.iterdir())) == 40
    del drawn["2.jpg"]
    assert {name: (images / name).stat().st_mtime_ns for name in drawn} == drawn


def test_ctrl_c_says_what_is_kept(tmp_path, monkeypatch):
    scenes, draw = list(make_scenes("train", 0, 3)), Scene.image

    def stop(scene):
        if scene.number == 2:
            raise KeyboardInterrupt
        return draw(scene)

    monkeypatch.setattr(Scene, "image", stop)
    with pytest.raises(Interrupted, match=r"2 of 3 .*resume"):
        write_visual_genome(tmp_path, scenes)
    monkeypatch.undo()
    write_visual_genome(tmp_path, scenes)
    write_visual_genome(tmp_path / "whole", scenes)
    whole = content(tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole")
    assert content(tmp_path) == whole


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
