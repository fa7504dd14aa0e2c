"""Several regions in one second look (`regions=separate`), on a scripted model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image
from scripted_flow import BOX, Q2_PAPER, SCRIPT, photo, question, run

from dualfocus_lmms import Box, BoxFormat, Question, Trace, UserError
from dualfocus_lmms.boxes import distinct, in_reading_order
from dualfocus_lmms.plugins import FAMILIES, load_family, names
from dualfocus_lmms.prompts import MOST_REGIONS
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.zoom import DynamicResolution

SIZE = (400, 200)
LEFT, RIGHT, BELOW = Box(0.1, 0.15, 0.3, 0.35), Box(0.6, 0.1, 0.8, 0.3), Box(0.1, 0.6, 0.3, 0.9)
CROPS = ((32, 26, 128, 74), (232, 16, 328, 64), (32, 114, 128, 186))  # each 20% wider and higher than its box
REPLY = "[0.10, 0.60, 0.30, 0.90], [0.60, 0.10, 0.80, 0.30] and [0.10, 0.15, 0.30, 0.35]"


def separate(locate: str, image: Image.Image | None = None, **settings) -> tuple[FakeBackend, Trace]:
    backend = FakeBackend(SCRIPT | {"locate": locate})
    (trace,) = run(backend, question(image=image or photo(*SIZE)), regions="separate", **settings)
    return backend, trace


def test_each_region_is_shown_in_reading_order_with_a_tenth_more_on_each_side():
    backend, trace = separate(REPLY)
    micro = backend.calls[2].conversations[0]
    assert micro.turns[1].text == REPLY
    assert [image.tobytes() for image in micro.turns[2].images] == [
        photo(*SIZE).crop(crop).tobytes() for crop in CROPS
    ]
    assert micro.turns[2].text.startswith("Combine these four images and answer the question: What is")
    assert trace.prompts["micro"] == micro.turns[2].text
    assert trace.crops == trace.shown == CROPS
    assert [Box(*box) for box in trace.boxes] == [LEFT, RIGHT, BELOW]
    assert trace.box == (0.1, 0.1, 0.8, 0.9)
    assert (trace.crop, trace.crop_size, trace.crop_sizes, trace.fallback) == (None, None, None, None)
    assert Trace.from_json(trace.to_json()) == trace


def test_one_region_is_one_crop():
    backend, trace = separate(BOX)
    assert trace.crop == (180, 40, 400, 160)
    assert trace.crops == (trace.crop,)
    assert backend.calls[2].conversations[0].turns[2].text.startswith(Q2_PAPER)
    assert backend.calls[1].limits[0].max_new_tokens == MOST_REGIONS * 64


def test_the_first_four_that_are_apart_are_shown():
    corners = [f"[0.{n}0, 0.10, 0.{n}5, 0.20]" for n in (8, 1, 6, 5, 3)]
    backend, trace = separate(", ".join([corners[0], "[0.50, 0.50, 0.50, 0.50]", *corners]))
    assert [box[0] for box in trace.boxes] == [0.1, 0.5, 0.6, 0.8]
    assert len(backend.calls[2].conversations[0].images) == 5


@pytest.mark.parametrize(
    ("reply", "fallback"),
    [("", "no_box"), ("[0.5, 0.5, 0.5, 0.9], [1.2, 0.1, 1.4, 0.2]", "empty_region")],
)
def test_no_region_leaves_the_macro_answer(reply: str, fallback: str):
    backend, trace = separate(reply)
    assert (trace.fallback, trace.selection.text, trace.crops) == (fallback, "cat", ())
    assert len(backend.calls) == 2
    assert Trace.from_json(trace.to_json()) == trace


def test_the_margin_and_the_enlargement_are_those_of_one_region():
    resolution = DynamicResolution(28, 56 * 56, 3584 * 3584)
    backend = FakeBackend(SCRIPT | {"locate": REPLY}, resolution=resolution)
    (trace,) = run(backend, question(image=photo(*SIZE)), regions="separate", box_margin=2)
    assert trace.crops[0] == (30, 24, 130, 76)
    seen = [image.size for image in backend.calls[2].conversations[0].turns[2].images]
    assert trace.crop_sizes == tuple(resolution.fit(size) for size in seen)
    assert seen == [(392, 196), (392, 196), (308, 252)]


def test_the_data_s_own_boxes_are_written_as_the_reply():
    asked = replace(question(image=photo(*SIZE)), box=Box(0.1, 0.1, 0.8, 0.9), boxes=(RIGHT, BELOW, LEFT))
    backend = FakeBackend(SCRIPT)
    (one,) = run(backend, asked, grounding="annotated")
    assert (one.given_reply, one.crop) == ("[0.10, 0.10, 0.80, 0.90]", (40, 20, 320, 180))
    (trace,) = run(backend, asked, grounding="annotated", regions="separate")
    assert trace.given_reply == "[0.10, 0.15, 0.30, 0.35], [0.60, 0.10, 0.80, 0.30], [0.10, 0.60, 0.30, 0.90]"
    assert trace.crops == CROPS
    alone: Question = replace(asked, boxes=())
    (trace,) = run(backend, alone, grounding="annotated", regions="separate")
    assert trace.crops == ((12, 4, 348, 196),)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"protocol": "release"}, "protocol=release"),
        ({"select": "release"}, "select=release"),
        ({"subimage": "patch"}, "subimage=patch"),
        ({"box_shift": 3}, "box_shift"),
    ],
)
def test_what_knows_of_one_region_is_refused(settings: dict, named: str):
    with pytest.raises(UserError, match=named):
        separate(REPLY, **settings)


def test_a_trace_of_one_region_is_written_as_before():
    (trace,) = run(FakeBackend(SCRIPT), question())
    assert not {"boxes", "crops", "crop_sizes"} & set(json.loads(trace.to_json()))


@pytest.mark.parametrize(
    ("reply", "count"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", 1),
        ("[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7", 1),
        ("(0.1,0.2),(0.3,0.4) (0.5,0.6),(0.7,0.8)", 2),
        ('[{"bbox_2d": [100, 200, 300, 400], "label": "a"}, {"bbox_2d": [1, 2, 3, 4]}]', 2),
        ("x0=0.1 y0=0.2 x1=0.3 y1=0.4; x0=0.5 y0=0.6 x1=0.7 y1=0.8", 2),
        ('{"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}, {"ymax": 8, "ymin": 6, "xmin": 5, "xmax": 7}', 2),
        ("1e12, 0.2, 0.3, 0.4; 0.1, 0.2, 0.3, 0.4", 1),
        ("two: 0.1 0.2 0.3 0.4\n0.5 0.6 0.7 0.8", 2),
        ("[10%, 20%, 30%, 40%]", 0),
    ],
)
def test_every_box_of_a_reply_is_read(reply: str, count: int):
    form = BoxFormat()
    found = form.read_all(reply, SIZE)
    assert len(found) == count
    first = form.read(reply, SIZE)
    assert first is None or first == found[0]


@pytest.mark.parametrize("family", names(FAMILIES))
def test_several_boxes_survive_writing_and_reading(family: str):
    form = load_family(family).box_format
    sizes = SIZE, (400, 200)
    boxes = form.read_all(form.write_all([LEFT, RIGHT, BELOW], *sizes), *sizes)
    for box, written in zip(boxes, [LEFT, RIGHT, BELOW], strict=True):
        assert box.xyxy == pytest.approx(written.xyxy, abs=0.003)


def test_reading_order_and_overlaps():
    assert in_reading_order([BELOW, RIGHT, LEFT]) == [LEFT, RIGHT, BELOW]
    staircase = [Box(0.1 * n, 0.2 * n, 0.1 * n + 0.1, 0.2 * n + 0.3) for n in (2, 1, 0)]
    assert in_reading_order(staircase) == staircase[::-1]
    point = Box(0.5, 0.5, 0.5, 0.5)
    assert in_reading_order([point, point]) == [point, point]
    assert distinct([point, point, LEFT, LEFT.grown(0.1), RIGHT]) == [point, LEFT, RIGHT]
