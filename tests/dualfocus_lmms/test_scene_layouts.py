"""Scenes of other layouts: what their questions need to be answered, and the same everywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.boxes import PADDING, Box
from dualfocus_lmms.models.tiny.nano import PATCH
from dualfocus_lmms.models.tiny.nano import SIDE as ENCODER
from dualfocus_lmms.scene_layouts import (
    ENCODER_SIDE,
    READABLE,
    TINY_SIDE,
    UNREADABLE,
    make_layout,
    make_layouts,
    scene_named,
    seen_height,
)
from dualfocus_lmms.scenes import COLORS, SIDE, make_scene


@pytest.mark.parametrize("layout", ["shapes", "near", "apart", "tiny"])
def test_a_scene_is_found_by_its_name(layout: str):
    scene = make_layout(layout, "test", 3, 4)
    assert scene_named(scene.name) == scene
    assert scene.image().tobytes() == scene_named(scene.name).image().tobytes()
    assert scene.image().size == (scene.side, scene.side) == ((TINY_SIDE if layout == "tiny" else SIDE),) * 2
    if layout == "shapes":
        assert scene == make_scene("test", 3, 4)
        assert scene.name == "test-3-4"


def test_layouts_splits_and_seeds_share_no_scene():
    parts = [
        (layout, split, seed)
        for layout in ("near", "apart", "tiny")
        for split in ("train", "test")
        for seed in (0, 1)
    ]
    scenes = [scene for part in parts for scene in make_layouts(*part, 10)]
    assert len({scene.things for scene in scenes}) == len({scene.name for scene in scenes}) == len(scenes)
    for layout, split in (("far", "test"), ("near", "tset")):
        with pytest.raises(UserError):
            make_layout(layout, split, 0, 0)


@pytest.mark.parametrize("layout", ["near", "apart"])
def test_answers_about_two_things_are_true_and_yes_and_no_are_balanced(layout: str):
    answers = Counter()
    for scene in make_layouts(layout, "test", 0, 60):
        names = {thing.name: thing for thing in scene.things}
        for asked in scene.questions:
            assert [thing.name in asked.question for thing in asked.things] == [True, True]
            assert asked.question.index(asked.things[0].name) < asked.question.index(asked.things[1].name)
            assert all(names[thing.name] == thing for thing in asked.things)
            first, second = (thing.digit for thing in asked.things)
            if asked.kind == "larger":
                assert first != second
                assert asked.answer == max(first, second)
            else:
                assert asked.answer == ("yes" if first == second else "no")
            answers[asked.kind, asked.answer in ("yes", "no") and asked.answer] += 1
    assert answers == {("larger", False): 40, ("same", "yes"): 20, ("same", "no"): 20}


def test_one_region_shows_both_digits_of_things_that_are_near_and_no_region_of_things_apart():
    assert ENCODER_SIDE == ENCODER
    for layout in ("near", "apart"):
        for scene in make_layouts(layout, "test", 0, 60):
            for asked in scene.questions:
                assert asked.box == Box.around(thing.box for thing in asked.things)
                for thing in asked.things:
                    assert seen_height(thing, thing.box.grown(PADDING)) >= READABLE
                    if layout == "near":
                        assert seen_height(thing, asked.box.grown(PADDING)) >= READABLE
                    else:
                        assert seen_height(thing, asked.box) <= UNREADABLE


def test_tiny_things_are_narrower_than_a_patch_and_lie_where_their_colour_is():
    for scene in make_layouts("tiny", "test", 0, 3):
        pixels = np.asarray(scene.image())
        for asked in scene.questions:
            (thing,) = asked.things
            assert asked.answer == thing.digit
            assert 2 * thing.radius * ENCODER / scene.side < PATCH
            assert seen_height(thing, thing.box.grown(PADDING)) >= READABLE
            left, top, right, bottom = (round(value * scene.side) for value in thing.box.xyxy)
            same = np.all(pixels == COLORS[thing.color], axis=2)
            assert same[top:bottom, left:right].mean() > 0.35


def test_the_height_of_a_digit_is_that_of_its_crop():
    thing = make_scene("test", 0, 0).things[0]
    assert seen_height(thing, Box(0, 0, 1, 0.5)) == pytest.approx(thing.digit_height * 96 / 512)
    assert Box(0.4, 0.2, 0.6, 0.7).grown(PADDING).xyxy == pytest.approx((0.38, 0.15, 0.62, 0.75))
