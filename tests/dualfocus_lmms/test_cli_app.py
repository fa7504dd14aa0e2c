"""`dualfocus app`: what each step shows, without the library that draws the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import GenerationError, UserError
from dualfocus_lmms.cli.app import OWN, _examples, _outputs
from dualfocus_lmms.cli.steps import steps
from dualfocus_lmms.testing import FakeBackend, Reply
from dualfocus_lmms.visualize import MICRO_COLOR

SCRIPT = {"macro": Reply("red", (-0.7,)), "locate": "[0.25, 0.25, 0.50, 0.75]", "micro": "blue"}
IMAGE = Image.new("RGB", (40, 20), "red")
COLOR = tuple(int(MICRO_COLOR[place : place + 2], 16) for place in (1, 3, 5))


def test_each_step_adds_what_was_made():
    shown = list(steps(FakeBackend(SCRIPT), IMAGE, "What colour?"))
    assert [one.macro for one in shown] == [("", ""), *[("red", "2.014")] * (len(shown) - 1)]
    crops = [one.crop.size if one.crop else None for one in shown]
    first = crops.index(next(filter(None, crops)))
    assert [size is None for size in crops] == [place < first for place in range(len(crops))]
    assert shown[first].micro == ("", "")
    assert [one.image.getpixel((10, 5)) == COLOR for one in shown].index(True) < first
    last = shown[-1]
    assert (last.micro, last.crop.size) == (("blue", "1.105"), (10, 10))
    assert last.trace is not None
    assert (last.trace.selection.text, last.trace.box) == ("blue", (0.25, 0.25, 0.5, 0.75))
    assert IMAGE.getpixel((10, 5)) == (255, 0, 0)


def test_without_a_region_there_is_no_crop():
    shown = list(steps(FakeBackend({"macro": "red", "locate": "I see none."}), IMAGE, "What colour?"))
    assert {one.crop for one in shown} == {None}
    assert (shown[-1].micro, shown[-1].trace.fallback) == (("", ""), "no_box")


def test_the_controls_are_the_settings():
    backend = FakeBackend(SCRIPT)
    found = [
        list(_outputs(backend, IMAGE, "What?", protocol, select, grounding, pixels))[-1]
        for protocol, select, grounding, pixels in [
            ("paper", OWN, "model", ""),
            ("paper", "macro", "center", " "),
            ("release", "micro", "whole", "original"),
        ]
    ]
    assert [one[0].split()[0] for one in found] == ["blue", "red", "blue"]
    assert [one[2].size for one in found][1] == (20, 10)


@pytest.mark.parametrize(
    ("image", "settings", "named"),
    [
        (None, ("paper", OWN, "model", ""), "image"),
        (IMAGE, ("papr", OWN, "model", ""), "papr"),
        (IMAGE, ("paper", OWN, "model", "many"), "many"),
    ],
)
def test_mistakes_are_user_errors(image: Any, settings: tuple[str, ...], named: str):
    with pytest.raises(UserError, match=named):
        list(_outputs(FakeBackend(SCRIPT), image, "What?", *settings))


def test_a_failure_of_the_model_is_passed_on():
    def broken(stage: str, conversation: object) -> str:
        raise GenerationError("no numbers")

    with pytest.raises(GenerationError, match="no numbers"):
        list(steps(FakeBackend(broken), IMAGE, "What?"))


def test_the_examples_are_scenes_with_questions(tmp_path: Path):
    found = _examples(tmp_path)
    assert len(found) == 4
    assert {Image.open(path).size for path, _ in found} == {(512, 512)}
    assert all(question.endswith("?") for _, question in found)


def test_without_the_library_the_message_names_the_extra(run: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    done = run("app", "--pretrained", "dualfocus-nano")
    assert (done.code, "dualfocus-lmms[app]" in done.err) == (2, True)
