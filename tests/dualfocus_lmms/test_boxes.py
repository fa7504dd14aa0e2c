"""What models really write, and the box it becomes; formats and frames there and back."""

from __future__ import annotations

import math
import random

import pytest

from dualfocus_lmms import Box, BoxFormat
from dualfocus_lmms.boxes import WHOLE

FRACTIONS = BoxFormat()
THOUSANDTHS = BoxFormat("<box>({:d},{:d}),({:d},{:d})</box>", scale=1000)
PIXELS = BoxFormat('{{"bbox_2d": [{:d}, {:d}, {:d}, {:d}]}}', frame="resized")

SIZE = (640, 480)

REPLIES = {
    # as trained
    "[0.10, 0.20, 0.30, 0.40]": (0.1, 0.2, 0.3, 0.4),
    "[0.00, 0.00, 1.00, 1.00]": (0, 0, 1, 1),
    # spacing, brackets and text around
    "[0.10,0.20,0.30,0.40]": (0.1, 0.2, 0.3, 0.4),
    " 0.10   0.20\t0.30\n0.40 ": (0.1, 0.2, 0.3, 0.4),
    "(0.1, 0.2), (0.3, 0.4)": (0.1, 0.2, 0.3, 0.4),
    "[[0.1, 0.2], [0.3, 0.4]]": (0.1, 0.2, 0.3, 0.4),
    "The region is [0.1, 0.2, 0.3, 0.4].": (0.1, 0.2, 0.3, 0.4),
    "It is at 0.1, 0.2, 0.3, 0.4.": (0.1, 0.2, 0.3, 0.4),
    "Two dogs and 3 cats: [0.1; 0.2; 0.3; 0.4]": (0.1, 0.2, 0.3, 0.4),
    "1. [0.1, 0.2, 0.3, 0.4]": (0.1, 0.2, 0.3, 0.4),
    "1. (120,300),(500,400)": (0.12, 0.3, 0.5, 0.4),
    "[x1, y1, x2, y2] = [0.1, 0.2, 0.3, 0.4]": (0.1, 0.2, 0.3, 0.4),
    "[0.1, 0.2, 0.3, 0.4, 0.95]": (0.1, 0.2, 0.3, 0.4),
    # numbers in other clothes
    "[.10, .2, .30, .4]": (0.1, 0.2, 0.3, 0.4),
    "[0., 0., 1., 1.]": (0, 0, 1, 1),
    "[+0.1, 0.2, 0.3, 0.4]": (0.1, 0.2, 0.3, 0.4),
    "[1e-1, 2E-1, 3e-1, 4.0e-01]": (0.1, 0.2, 0.3, 0.4),
    '["0.1", "0.2", "0.3", "0.4"]': (0.1, 0.2, 0.3, 0.4),
    "[0.123456789, 0.2, 0.3, 0.4]": (0.123456789, 0.2, 0.3, 0.4),
    # outside the image: kept, clipped by whoever crops
    "[-0.10, 0.20, 1.30, 0.40]": (-0.1, 0.2, 1.3, 0.4),
    "[2.5, 2.5, 3.5, 3.5]": (2.5, 2.5, 3.5, 3.5),
    "[1990, 1991, 1992, 1993]": (1990, 1991, 1992, 1993),
    # corners in any order
    "[0.3, 0.4, 0.1, 0.2]": (0.1, 0.2, 0.3, 0.4),
    "[0.3, 0.2, 0.1, 0.4]": (0.1, 0.2, 0.3, 0.4),
    "[0.5, 0.5, 0.5, 0.5]": (0.5, 0.5, 0.5, 0.5),
    # several boxes: the first
    "[0.1, 0.2, 0.3, 0.4] and [0.5, 0.6, 0.7, 0.8]": (0.1, 0.2, 0.3, 0.4),
    "[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]": (0.1, 0.2, 0.3, 0.4),
    # other families' formats: integers are thousandths
    "<ref>the 2 dogs</ref><box>(120,300),(500,400)</box>": (0.12, 0.3, 0.5, 0.4),
    "[[052,103,333,444]]": (0.052, 0.103, 0.333, 0.444),
    "[100, 200, 300, 400]": (0.1, 0.2, 0.3, 0.4),
    "100, 200, 300, 400.": (0.1, 0.2, 0.3, 0.4),
    "[0, 0, 1000, 1000]": (0, 0, 1, 1),
    "[0, 0, 1, 1]": (0, 0, 1, 1),
    '```json\n[{"bbox_2d": [100, 200, 300, 400], "label": "dog"}]\n```': (0.1, 0.2, 0.3, 0.4),
    # named corners
    '{"x1": 0.1, "y1": 0.2, "x2": 0.3, "y2": 0.4}': (0.1, 0.2, 0.3, 0.4),
    '{"y2": 0.4, "x2": 0.3, "y1": 0.2, "x1": 0.1}': (0.1, 0.2, 0.3, 0.4),
    '{"xmin": "0.1", "ymin": "0.2", "xmax": "0.3", "ymax": "0.4"}': (0.1, 0.2, 0.3, 0.4),
    "x_min=100, y_min=200, x_max=300, y_max=400": (0.1, 0.2, 0.3, 0.4),
    "Left: 0.1, Top: 0.2, Right: 0.3, Bottom: 0.4.": (0.1, 0.2, 0.3, 0.4),
    "x0=0.1 y0=0.2 x1=0.3 y1=0.4; x0=0.5 y0=0.6 x1=0.7 y1=0.8": (0.1, 0.2, 0.3, 0.4),
    # no box
    "": None,
    "The whole image.": None,
    "[0.1, 0.2, 0.3]": None,
    "[0.1, 0.2] 0.3": None,
    "the box 0.10.20.30.40": None,
    "a0.1, 0.2, 0.3, 0.4": None,
    "0.1, 0.2, 0.3, 0.4px": None,
    "[nan, nan, nan, nan]": None,
    "[NaN, 0.2, inf, 0.4]": None,
    "[1e999, 0.2, 0.3, 0.4]": None,
    "9" * 400 + ", 0.2, 0.3, 0.4": None,
    "0." + "1" * 300 + ", 0.2, 0.3": None,
    "1" * 64: None,
    # percentages, dates, addresses and versions are no coordinates
    "[10%, 20%, 30%, 40%]": None,
    "10, 20, 30, 40%": None,
    "left: 10%, top: 20%, right: 30%, bottom: 40%": None,
    "2024-01-02 10:20:30": None,
    "2024-01-02, 3, 4, 5": None,
    "192.168.0.1": None,
    "192.168.0.1, 2, 3, 4": None,
    "1990-1991, 1992, 1993": None,
    '{"x": 10, "y": 20, "width": 30, "height": 40}': None,
}


@pytest.mark.parametrize(("reply", "expected"), REPLIES.items())
def test_reply_to_a_fraction_format(reply: str, expected: tuple[float, ...] | None) -> None:
    box = FRACTIONS.read(reply, SIZE)
    assert (box and box.xyxy) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("<box>(120,300),(500,400)</box>", (0.12, 0.3, 0.5, 0.4)),
        ("[0, 0, 1000, 1000]", (0, 0, 1, 1)),
        ("[0, 0, 2, 2]", (0, 0, 0.002, 0.002)),
        ("[120.5, 300, 500, 400]", (0.1205, 0.3, 0.5, 0.4)),
        # fractions of the frame, as no box is a thousandth wide
        ("[0.12, 0.30, 0.50, 0.40]", (0.12, 0.3, 0.5, 0.4)),
        ("[-0.01, 0.30, 1.02, 0.40]", (-0.01, 0.3, 1.02, 0.4)),
        ("[0, 0, 1, 1]", (0, 0, 1, 1)),
        # outside
        ("[-10, 0, 1200, 500]", (-0.01, 0, 1.2, 0.5)),
    ],
)
def test_reply_to_a_thousandths_format(reply: str, expected: tuple[float, ...]) -> None:
    box = THOUSANDTHS.read(reply, SIZE)
    assert box is not None
    assert box.xyxy == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"bbox_2d": [32, 24, 160, 240]}', (0.1, 0.1, 0.5, 1)),
        ("[0, 0, 320, 240]", (0, 0, 1, 1)),
        ("[0.1, 0.1, 0.5, 1.0]", (0.1, 0.1, 0.5, 1)),
        ("[0, 0, 640, 240]", (0, 0, 2, 1)),
    ],
)
def test_reply_in_pixels_of_the_resized_input(reply: str, expected: tuple[float, ...]) -> None:
    box = PIXELS.read(reply, SIZE, (320, 240))
    assert box is not None
    assert box.xyxy == pytest.approx(expected)


def test_pixels_need_the_size_of_the_input() -> None:
    with pytest.raises(ValueError, match="input_size"):
        PIXELS.read("[1, 2, 3, 4]", SIZE)


def test_square_frame_by_hand() -> None:
    square = BoxFormat(frame="square")
    # 640 x 480 on a square of 640: 80 pixels of padding above and below.
    assert square.write(WHOLE, SIZE) == "[0.00, 0.12, 1.00, 0.88]"
    box = square.read("[0.50, 0.50, 0.75, 0.875]", SIZE)
    assert box is not None
    assert box.xyxy == pytest.approx((0.5, 0.5, 0.75, 1))
    tall = BoxFormat("[{:d}, {:d}, {:d}, {:d}]", scale=1000, frame="square")
    assert tall.write(WHOLE, (100, 400)) == "[375, 0, 625, 1000]"


def test_texts_as_written() -> None:
    box = Box(0.2, 0.41, 0.368, 0.7)
    assert FRACTIONS.write(box, SIZE) == "[0.20, 0.41, 0.37, 0.70]"
    assert THOUSANDTHS.write(box, SIZE) == "<box>(200,410),(368,700)</box>"
    assert PIXELS.write(box, SIZE, (320, 240)) == '{"bbox_2d": [64, 98, 118, 168]}'
    assert BoxFormat("{:03d} {:03d} {:03d} {:03d}", scale=1000).write(box, SIZE) == "200 410 368 700"


def test_y_comes_first_where_the_family_says_so_unless_the_corners_have_names() -> None:
    gemma = BoxFormat('{{"box_2d": [{:d}, {:d}, {:d}, {:d}]}}', scale=1000, order="yxyx")
    box = Box(0.2, 0.41, 0.368, 0.7)
    assert gemma.write(box, SIZE) == '{"box_2d": [410, 200, 700, 368]}'
    replies = [
        gemma.write(box, SIZE),
        '```json\n[{"box_2d": [410, 200, 700, 368], "label": "bike"}]\n```',
        '{"xmin": 200, "ymin": 410, "xmax": 368, "ymax": 700}',
    ]
    for reply in replies:
        read = gemma.read(reply, SIZE)
        assert read is not None
        assert read.xyxy == pytest.approx(box.xyxy)


@pytest.mark.parametrize("frame", ["original", "square", "resized"])
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (336, 336), (1, 9), (9, 1), (1, 1), (4000, 30)])
@pytest.mark.parametrize("decimals", [0, 2, 3])
def test_written_and_read_again(frame: str, size: tuple[int, int], decimals: int) -> None:
    number = "{:d}" if decimals == 0 else f"{{:.{decimals}f}}"
    written = BoxFormat(f"[{number}, {number}, {number}, {number}]", 1 if decimals else 1000, frame)
    input_size = (1008, 1316) if frame == "resized" else None
    edges = input_size or (written.scale, written.scale)
    shares = [side / max(size) if frame == "square" else 1 for side in size]
    tolerances = [0.5 * 10**-decimals / edge / share for edge, share in zip(edges, shares, strict=True)]
    rng = random.Random(1)
    for _ in range(200):
        x0, x1 = sorted(rng.random() for _ in range(2))
        y0, y1 = sorted(rng.random() for _ in range(2))
        box = written.read(written.write(Box(x0, y0, x1, y1), size, input_size), size, input_size)
        assert box is not None
        for value, expected, tolerance in zip(box.xyxy, (x0, y0, x1, y1), tolerances * 2, strict=True):
            assert abs(value - expected) <= tolerance * (1 + 1e-9)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (Box(0, 0, 1, 1), Box(0, 0, 1, 1), 1),
        (Box(0, 0, 0.5, 1), Box(0.5, 0, 1, 1), 0),
        (Box(0, 0, 0.5, 0.5), Box(0.25, 0, 0.75, 0.5), 1 / 3),
        (Box(0, 0, 1, 1), Box(0.25, 0.25, 0.75, 0.75), 0.25),
        (Box(0, 0, 0.1, 0.1), Box(0.5, 0.5, 0.6, 0.6), 0),
        (Box(0.5, 0.5, 0.5, 0.5), Box(0.5, 0.5, 0.5, 0.5), 0),
        (Box(0, 0, 1, 1), Box(0.5, 0, 0.5, 1), 0),
    ],
)
def test_iou(one: Box, other: Box, expected: float) -> None:
    assert one.iou(other) == pytest.approx(expected)
    assert other.iou(one) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        (Box(0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
        (Box(-0.5, -1, 2, 0.5), (0, 0, 1, 0.5)),
        (Box(1.5, 0.2, 1.7, 0.4), (1, 0.2, 1, 0.4)),
        (Box(-3, -3, -2, -2), (0, 0, 0, 0)),
    ],
)
def test_clip(box: Box, inside: tuple[float, ...]) -> None:
    assert box.clip().xyxy == inside


@pytest.mark.parametrize(
    "corners", [(math.nan, 0, 1, 1), (0, 0, math.inf, 1), (0.5, 0, 0.4, 1), (0, 0.5, 1, 0.4)]
)
def test_impossible_corners(corners: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="box"):
        Box(*corners)


def test_area() -> None:
    assert Box(0.25, 0.5, 0.75, 1).area == pytest.approx(0.25)


def test_the_smallest_box_around_others() -> None:
    boxes = [Box(0.2, 0.3, 0.4, 0.5), Box(-0.1, 0.4, 0.3, 0.45), Box(0.35, 0.1, 1.2, 0.2)]
    assert Box.around(boxes) == Box(-0.1, 0.1, 1.2, 0.5)
    assert Box.around(iter(boxes[:1])) == boxes[0]
    with pytest.raises(ValueError, match="unpack"):
        Box.around([])
