"""Scenes: the same from the same seed, never shared by splits, true to their own words."""

from hashlib import sha256

import numpy as np
import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.boxes import WHOLE
from dualfocus_lmms.scenes import COLORS, SIDE, SPLITS, VERSION, make_scene, make_scenes


def test_a_scene_is_the_same_whenever_it_is_made():
    first, again = make_scene("test", 3, 7), make_scene("test", 3, 7)
    assert first == again
    assert first.image().tobytes() == again.image().tobytes()
    assert first.image().size == (SIDE, SIDE)


def test_the_questions_of_a_version_stay_the_same():
    """Images are drawn with Pillow's font, and may differ from release to release; what is asked may not."""
    said = [
        (scene.name, asked.kind, asked.question, asked.answer, asked.box.xyxy)
        for split in SPLITS
        for scene in make_scenes(split, 0, 20)
        for asked in scene.questions
    ]
    assert VERSION == 2
    assert sha256(repr(said).encode()).hexdigest()[:16] == "fb07c1edb84f588f"


def test_splits_and_seeds_share_no_scene():
    halves = [(split, seed) for split in ("train", "validation", "test") for seed in (0, 1)]
    scenes = [scene for split, seed in halves for scene in make_scenes(split, seed, 60)]
    assert len({scene.things for scene in scenes}) == len(scenes)
    with pytest.raises(UserError):
        make_scene("tset", 0, 0)


def test_answers_are_true_and_yes_and_no_are_balanced():
    verdicts = []
    for scene in make_scenes("test", 0, 200):
        names = {thing.name: thing for thing in scene.things}
        assert len(names) == len(scene.things)
        for asked in scene.questions:
            words = asked.question.rstrip("?").split()
            if asked.kind == "detail":
                assert asked.answer == names[" ".join(words[-2:])].digit
            elif asked.kind == "exist":
                there = " ".join(words[3:5]) in names
                assert asked.answer == ("yes" if there else "no")
                verdicts.append(there)
            elif words[0] == "How":
                assert asked.answer == str(len(scene.things))
            else:
                first, second = names[" ".join(words[2:4])], names[" ".join(words[-2:])]
                holds = first.x < second.x if "left" in words else first.y < second.y
                assert asked.answer == ("yes" if holds else "no")
    assert sum(verdicts) * 2 == len(verdicts)


def test_boxes_hold_the_things_and_their_colour():
    for scene in make_scenes("train", 0, 20):
        pixels = np.asarray(scene.image())
        for thing in scene.things:
            left, top, right, bottom = (round(value * SIDE) for value in thing.box.xyxy)
            same = np.all(pixels == COLORS[thing.color], axis=2)
            inside = same[top:bottom, left:right]
            assert inside.mean() > 0.35
            assert same.sum() >= inside.sum()
            assert same[bottom - 2, thing.x]
        for asked in scene.questions:
            for thing in asked.things:
                x0, y0, x1, y1 = thing.box.xyxy
                assert asked.box.x0 <= x0 < x1 <= asked.box.x1
                assert asked.box.y0 <= y0 < y1 <= asked.box.y1
            assert asked.things or asked.box == WHOLE


def test_a_digit_is_small_in_the_scene_and_large_in_its_crop():
    thing = make_scene("train", 0, 0).things[0]
    assert thing.digit_height / SIDE * 96 < 4  # pixels of an encoder that sees 96
    assert thing.digit_height / (2 * thing.radius) * 96 > 11
