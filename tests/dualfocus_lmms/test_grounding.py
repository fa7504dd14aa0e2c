"""Regions that do not come from the model, and regions that are moved: boxes, conversations, traces."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from PIL import Image

from dualfocus_lmms import Box, BoxFormat, Question, Settings, StopCriteria, Trace, UserError, answer_batch
from dualfocus_lmms.grounding import GROUNDINGS, load_grounding, names, shifted
from dualfocus_lmms.testing import FakeBackend, Reply

SCRIPT = {
    "macro": Reply("cat", (-0.5,)),
    "locate": Reply("[0.50, 0.25, 1.00, 0.75]", (-0.1, -0.2)),
    "micro": Reply("dog", (-0.25,)),
}
GIVEN_SCRIPT = {"macro": SCRIPT["macro"], "micro": SCRIPT["micro"]}  # has no reply to Q1
ANNOTATED = Box(0.123, 0.25, 0.6, 0.871)


def question(name: str = "0", size: tuple[int, int] = (400, 200), box: Box | None = ANNOTATED) -> Question:
    return Question(name, Image.new("RGB", size), "What is it?", "What is it?\nOne word.", box=box)


def run(backend: FakeBackend, *questions: Question, **settings) -> list[Trace]:
    return answer_batch(backend, questions, [StopCriteria(16)] * len(questions), Settings.of(**settings))


def moved_by(trace: Trace) -> tuple[float, float]:
    """How far the cropped box is from the located one, in pixels of the image."""
    assert trace.box is not None
    assert trace.shifted_box is not None
    by = [after - before for before, after in zip(trace.box, trace.shifted_box, strict=True)]
    assert by[:2] == pytest.approx(by[2:])  # the size stays
    return by[0] * trace.image_size[0], by[1] * trace.image_size[1]


@pytest.mark.parametrize(
    ("name", "box", "reply", "crop"),
    [
        ("annotated", (0.123, 0.25, 0.6, 0.871), "[0.12, 0.25, 0.60, 0.87]", (49, 50, 240, 175)),
        ("whole", (0, 0, 1, 1), "[0.00, 0.00, 1.00, 1.00]", (0, 0, 400, 200)),
        ("center", (0.25, 0.25, 0.75, 0.75), "[0.25, 0.25, 0.75, 0.75]", (100, 50, 300, 150)),
    ],
)
def test_a_given_box_is_said_in_the_models_place(name, box, reply, crop) -> None:
    asked, given = FakeBackend(SCRIPT), FakeBackend(GIVEN_SCRIPT)
    (own,) = run(asked, question())
    (trace,) = run(given, question(), grounding=name)
    assert [(call.stage, call.keep) for call in given.calls] == [("macro", "image"), ("micro", None)]
    assert (trace.box, trace.crop, trace.locate, trace.fallback) == (box, crop, None, None)
    assert (trace.grounding, trace.given_reply) == (name, reply)
    assert (own.grounding, own.given_reply) == ("model", None)
    assert trace.prompts == own.prompts
    assert trace.selection.text == "dog"
    said = own.locate.text  # type: ignore[union-attr]
    assert given.calls[1].texts == [text.replace(said, reply) for text in asked.calls[2].texts]
    turns = given.calls[1].conversations[0].turns
    assert turns[1].tokens is None
    assert turns[2].images[0].size == (crop[2] - crop[0], crop[3] - crop[1])
    assert sum(answer.usage.tokens for answer in trace.answers) == 2  # one token each, none for Q1
    assert Trace.from_json(trace.to_json()) == trace


def test_a_given_box_is_written_as_the_family_does() -> None:
    thousandths = BoxFormat("<box>({:d},{:d}),({:d},{:d})</box>", scale=1000)
    backend = FakeBackend(GIVEN_SCRIPT, thousandths)
    (trace,) = run(backend, question(), grounding="annotated")
    assert trace.given_reply == "<box>(123,250),(600,871)</box>"
    assert backend.calls[1].conversations[0].turns[1].text == trace.given_reply


def test_random_regions_are_a_quarter_inside_the_image_and_belong_to_their_question() -> None:
    questions = [question(str(number)) for number in range(200)]
    one = [trace.box for each in questions for trace in run(FakeBackend(SCRIPT), each, grounding="random")]
    all_at_once = [trace.box for trace in run(FakeBackend(SCRIPT), *questions[::-1], grounding="random")]
    assert one == all_at_once[::-1]
    boxes = [Box(*box) for box in one if box is not None]
    assert len({box.xyxy for box in boxes}) == 200
    assert [box.area for box in boxes] == pytest.approx([0.25] * 200)
    assert all(box == box.clip() for box in boxes)
    for low, high in ((0, 0.125), (0.375, 0.5)):  # corners and the middle alike: spread evenly
        assert 30 <= sum(low <= box.x0 <= high for box in boxes) <= 70
        assert 30 <= sum(low <= box.y0 <= high for box in boxes) <= 70


def test_another_process_draws_the_same() -> None:
    code = (
        "from PIL import Image; from dualfocus_lmms import Question\n"
        "from dualfocus_lmms.grounding import GROUNDINGS, shifted\n"
        "asked = Question('t/test/7', Image.new('RGB', (400, 200)), 'q', 'q')\n"
        "box = GROUNDINGS['random'](asked); print(*box.xyxy, *shifted(box, asked, 25).xyxy)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = question("t/test/7")
    box = GROUNDINGS["random"](here)
    assert [float(value) for value in printed.split()] == [*box.xyxy, *shifted(box, here, 25).xyxy]


def test_an_annotated_box_is_needed_only_where_it_is_looked_at() -> None:
    bare = question(box=None)
    with pytest.raises(UserError):
        run(FakeBackend(SCRIPT), question(), bare, grounding="annotated")
    for settings in ({"pathway": "macro"}, {"skip_confidence": 0}):
        backend = FakeBackend(GIVEN_SCRIPT)
        (trace,) = run(backend, bare, grounding="annotated", **settings)
        assert [call.stage for call in backend.calls] == ["macro"]
        assert (trace.grounding, trace.box, trace.given_reply) == ("annotated", None, None)
        assert list(trace.prompts) == ["macro"]


def test_an_annotated_box_without_area_falls_back_to_macro() -> None:
    backend = FakeBackend(GIVEN_SCRIPT)
    (trace,) = run(backend, question(box=Box(0.5, 0.5, 0.5, 0.5)), grounding="annotated")
    assert [call.stage for call in backend.calls] == ["macro"]
    assert (trace.fallback, trace.box, trace.given_reply) == ("empty_region", (0.5, 0.5, 0.5, 0.5), None)
    assert list(trace.prompts) == ["macro"]
    assert trace.selection.text == "cat"


def test_the_annotation_changes_nothing_unless_asked_for() -> None:
    (without,) = run(FakeBackend(SCRIPT), question(box=None))
    (with_box,) = run(FakeBackend(SCRIPT), question())
    assert without == with_box


def test_names() -> None:
    given = ["annotated", "whole", "center", "random"]
    assert names() == ["model", *given, "dino", "attention", "attention_plain"]
    assert load_grounding("model") is None
    assert [load_grounding(name) for name in GROUNDINGS] == list(GROUNDINGS.values())


@pytest.mark.parametrize("size", [(400, 200), (200, 400), (1000, 30)])
@pytest.mark.parametrize("pixels", [1, 10, 25, 150, 5000])
def test_a_box_moves_by_exactly_so_many_pixels(size: tuple[int, int], pixels: int) -> None:
    for number in range(20):
        asked = question(str(number), size)
        box = shifted(ANNOTATED, asked, pixels)
        dx, dy = (box.x0 - ANNOTATED.x0) * size[0], (box.y0 - ANNOTATED.y0) * size[1]
        assert math.hypot(dx, dy) == pytest.approx(pixels)
        assert (box.x1 - box.x0, box.y1 - box.y0) == pytest.approx((0.477, 0.621))


def test_directions_point_all_around_and_are_the_questions_own() -> None:
    questions = [question(str(number)) for number in range(400)]
    near, far = (run(FakeBackend(SCRIPT), *questions, box_shift=pixels) for pixels in (10, 150))
    angles = [math.atan2(*moved_by(trace)) for trace in near]
    assert [math.atan2(*moved_by(trace)) for trace in far] == pytest.approx(angles)
    quarters = [sum(low <= 2 * angle / math.pi < low + 1 for angle in angles) for low in (-2, -1, 0, 1)]
    assert all(60 <= count <= 140 for count in quarters)
    alone = [run(FakeBackend(SCRIPT), each, box_shift=10)[0] for each in questions[::40]]
    assert [trace.shifted_box for trace in alone] == [trace.shifted_box for trace in near[::40]]


@pytest.mark.parametrize("protocol", ["paper", "release"])
@pytest.mark.parametrize("grounding", ["model", "annotated", "random"])
def test_a_moved_box_changes_the_crop_and_no_word(protocol: str, grounding: str) -> None:
    still, moving = FakeBackend(SCRIPT), FakeBackend(SCRIPT)
    (before,) = run(still, question(), protocol=protocol, grounding=grounding)
    (after,) = run(moving, question(), protocol=protocol, grounding=grounding, box_shift=25)
    assert (before.box_shift, before.shifted_box, after.box_shift) == (0, None, 25)
    assert after.box == before.box
    assert math.hypot(*moved_by(after)) == pytest.approx(25)
    settings = Settings.of(protocol=protocol)
    moved = Box(*after.shifted_box)  # type: ignore[misc]
    assert after.crop == settings.protocol.geometry(moved, (400, 200), settings.box_margin) != before.crop
    assert [call.texts for call in moving.calls] == [call.texts for call in still.calls]
    turns = moving.calls[-1].conversations[0].turns
    assert turns[1].tokens == still.calls[-1].conversations[0].turns[1].tokens
    left, top, right, bottom = after.crop  # type: ignore[misc]
    assert turns[2].images[0].size == (right - left, bottom - top)
    assert Trace.from_json(after.to_json()) == after


def test_a_box_moved_over_the_border_is_cut_to_the_image() -> None:
    traces = run(
        FakeBackend(SCRIPT), *(question(str(number)) for number in range(50)), grounding="whole", box_shift=50
    )
    for trace in traces:
        dx, dy = moved_by(trace)
        assert math.hypot(dx, dy) == pytest.approx(50)
        left, top, right, bottom = trace.crop  # type: ignore[misc]
        assert (left, top) == (math.floor(max(dx, 0)), math.floor(max(dy, 0)))
        assert (right, bottom) == (math.ceil(400 + min(dx, 0)), math.ceil(200 + min(dy, 0)))


def test_a_box_moved_off_the_image_leaves_the_macro_answer() -> None:
    backend = FakeBackend(SCRIPT)
    (trace,) = run(backend, question(), box_shift=5000)
    assert [call.stage for call in backend.calls] == ["macro", "locate"]
    assert (trace.fallback, trace.crop, trace.micro) == ("empty_region", None, None)
    assert trace.box == (0.5, 0.25, 1, 0.75)
    assert math.hypot(*moved_by(trace)) == pytest.approx(5000)
    assert trace.selection.text == "cat"


def test_without_a_box_nothing_is_moved() -> None:
    (trace,) = run(FakeBackend(SCRIPT | {"locate": "nowhere"}), question(), box_shift=25)
    assert (trace.fallback, trace.shifted_box, trace.box_shift) == ("no_box", None, 25)
