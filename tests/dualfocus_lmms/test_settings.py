"""How DualFocus answers: what is filled in, and what is refused."""

from __future__ import annotations

import math

import pytest

from dualfocus_lmms import Settings, UserError


def test_settings_are_filled_in() -> None:
    assert Settings.of().to_dict() == {
        "protocol": "paper",
        "pathway": "both",
        "select": "ppl",
        "skip_confidence": 1.0,
        "box_margin": 0,
        "count_eos": False,
        "grounding": "model",
        "grounding_checkpoint": None,
        "box_shift": 0,
        "prompts": "paper",
        "subimage": "turn",
        "crop_pixels": "auto",
        "regions": "union",
        "looks": 1,
    }
    assert Settings.of(protocol="release", skip_confidence=0).to_dict() == {
        "protocol": "release",
        "pathway": "both",
        "select": "release",
        "skip_confidence": 0.0,
        "box_margin": 25,
        "count_eos": True,
        "grounding": "model",
        "grounding_checkpoint": None,
        "box_shift": 0,
        "prompts": "release",
        "subimage": "turn",
        "crop_pixels": "original",
        "regions": "union",
        "looks": 1,
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"protocol": "papr"}, ["papr", "paper", "release"]),
        ({"pathway": "micro"}, ["micro", "both", "macro"]),
        ({"select": "best"}, ["best", "ppl", "ppl_tie_macro", "macro", "micro"]),
        ({"skip_confidence": 1.01}, ["skip_confidence", "1.01"]),
        ({"skip_confidence": -0.1}, ["skip_confidence", "-0.1"]),
        ({"skip_confidence": math.nan}, ["skip_confidence", "nan"]),
        ({"skip_confidence": "0.5"}, ["skip_confidence", "0.5"]),
        ({"skip_confidence": True}, ["skip_confidence", "True"]),
        ({"box_margin": -1}, ["box_margin", "-1"]),
        ({"box_margin": 2.5}, ["box_margin", "2.5"]),
        ({"box_margin": True}, ["box_margin", "True"]),
        ({"count_eos": 1}, ["count_eos", "1"]),
        (
            {"grounding": "yolo"},
            ["yolo", "model", "annotated", "whole", "center", "random", "dino", "attention"],
        ),
        ({"grounding_checkpoint": "some/detector"}, ["some/detector", "dino", "model"]),
        ({"grounding": None}, ["None", "model"]),
        ({"box_shift": -1}, ["box_shift", "-1"]),
        ({"box_shift": 2.5}, ["box_shift", "2.5"]),
        ({"box_shift": True}, ["box_shift", "True"]),
        ({"box_shift": None}, ["box_shift", "None"]),
        ({"prompts": "papr"}, ["papr", "paper", "figure8", "release", "native"]),
        ({"prompts": 8}, ["8", "figure8"]),
        ({"keep_maps": True}, ["keep_maps", "model", "attention_plain"]),
        ({"keep_maps": "yes", "grounding": "attention"}, ["keep_maps", "yes"]),
    ],
)
def test_impossible_settings(given: dict, named: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Settings.of(**given)
    assert all(word in str(caught.value) for word in named)
