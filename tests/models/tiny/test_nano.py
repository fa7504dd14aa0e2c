"""The small model that comes with the package: found by its name, whole, and as good as its card says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL.Image import Image

from dualfocus_lmms import Conversation, DualFocusModel, StopCriteria
from dualfocus_lmms.boxes import Box
from dualfocus_lmms.models.checkpoint.loading import fingerprint, load_checkpoint
from dualfocus_lmms.models.checkpoint.shipped import SHIPPED, resolve_path
from dualfocus_lmms.models.engines.registry import make_engine
from dualfocus_lmms.prompts import PROMPTS
from dualfocus_lmms.scenes import SceneQuestion, make_scene
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Prompt


@pytest.fixture(scope="module")
def nano() -> DualFocusModel:
    return DualFocusModel("dualfocus-nano", device="cpu")


def test_its_name_is_a_folder_of_the_package(tmp_path, monkeypatch):
    folder = Path(resolve_path("dualfocus-nano"))
    assert folder == SHIPPED["dualfocus-nano"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    assert (folder / "README.md").is_file()
    assert fingerprint("dualfocus-nano") == fingerprint(str(folder))
    assert resolve_path("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dualfocus-nano").mkdir()
    assert resolve_path("dualfocus-nano") == "dualfocus-nano"  # a folder of the user's own goes first


def test_it_finds_the_thing_and_reads_its_digit(nano):
    """On scenes of the validation split; the figures of the test split are in docs/nano.md."""
    items, traces = answered(nano, "detail")
    answers = [question.answer for _, question in items]
    ious = [question.box.iou(Box(*trace.box)) for trace, (_, question) in zip(traces, items, strict=True)]
    assert sum(ious) / len(ious) > 0.8
    assert share(answers, [trace.micro.text for trace in traces]) > 0.85
    assert share(answers, [trace.selection.text for trace in traces]) > 0.85
    assert share(answers, [trace.macro.text for trace in traces]) < 0.4
    assert all(trace.macro.ended and trace.locate.ended and trace.micro.ended for trace in traces)


def test_it_answers_global_questions_from_the_whole_image(nano):
    items, traces = answered(nano, "global")
    answers = [question.answer for _, question in items]
    assert share(answers, [trace.macro.text for trace in traces]) > 0.85
    assert share(answers, [trace.selection.text for trace in traces]) > 0.85


def test_the_drafted_first_digits_of_a_box_are_nearly_always_correct():
    """A box has three of them, and each that is correct saves a forward."""
    scenes = [make_scene("validation", 0, number) for number in range(20)]
    items = [
        (scene, next(question for question in scene.questions if question.kind == "detail"))
        for scene in scenes
    ]
    prompts = [
        Conversation().user(PROMPTS["paper"].locate.format(question=question.question), scene.image())
        for scene, question in items
    ]
    checkpoint = load_checkpoint(resolve_path("dualfocus-nano"), device="cpu")
    quick = make_engine("template", checkpoint)
    plain = make_engine("template", checkpoint)
    plain._box = replace(plain._box, gap_token=None)
    for prompt in prompts:
        [answer], [other] = (
            engine.generate(Prompt.batch("locate", [prompt], [StopCriteria(30)])) for engine in (quick, plain)
        )
        assert answer.tokens == other.tokens
    saved = plain.counts.forwards - quick.counts.forwards
    assert 0.9 * 3 * len(scenes) <= saved <= 3 * len(scenes)


def answered(nano: DualFocusModel, kind: str) -> tuple[list[tuple[Image, SceneQuestion]], list[Trace]]:
    """The questions of a kind about twelve scenes, with their images, and the model's traces."""
    items = [
        (scene.image(), question)
        for scene in (make_scene("validation", 0, number) for number in range(12))
        for question in scene.questions
        if question.kind == kind
    ]
    return items, nano.ask_many([(image, question.question) for image, question in items], batch_size=16)


def share(answers: list[str], replies: list[str]) -> float:
    return sum(map(str.__eq__, answers, replies)) / len(answers)
