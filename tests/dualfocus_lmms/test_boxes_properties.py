"""What holds for every box: overlaps, and each family's format there and back."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.plugins import FAMILIES, load_family, names

FORMATS = {name: load_family(name).box_format for name in names(FAMILIES)} | {
    "fractions of the square": BoxFormat(frame="square"),
    "thousandths of the square": BoxFormat("({:d},{:d}),({:d},{:d})", scale=1000, frame="square"),
}
examples = settings(derandomize=True, deadline=None, max_examples=200, database=None)

fractions = st.floats(0, 1)
boxes = st.builds(Box.from_corners, fractions, fractions, fractions, fractions)
sides = st.integers(32, 4096)
sizes = st.tuples(sides, sides)


@pytest.mark.parametrize("name", FORMATS)
@examples
@given(box=boxes, image_size=sizes, input_size=sizes)
def test_what_is_written_is_read(
    name: str, box: Box, image_size: tuple[int, int], input_size: tuple[int, int]
) -> None:
    """To the precision of the format; written again, it is the same text."""
    form = FORMATS[name]
    text = form.write(box, image_size, input_size)
    found = form.read(text, image_size, input_size)
    assert found is not None
    is_whole = "d}" in form.template
    assume(not is_whole or max(numbers(text)) >= 2)  # [0, 0, 1, 1] is read as fractions
    edges = input_size if form.frame == "resized" else (form.scale, form.scale)
    if form.frame == "square":
        edges = tuple(edge * side / max(image_size) for edge, side in zip(edges, image_size, strict=True))
    step = 0.5 if is_whole else 0.005
    for before, after, edge in zip(box.xyxy, found.xyxy, (*edges, *edges), strict=True):
        assert after == pytest.approx(before, abs=step / edge + 1e-9)
    assert numbers(form.write(found, image_size, input_size)) == numbers(text)


def numbers(text: str) -> list[float]:
    """All numbers in the text for a box; 0 for -0."""
    return [float(number) + 0.0 for number in re.findall(r"-?[\d.]+", re.sub("b?box_2d", "", text))]


@examples
@given(one=boxes, other=boxes)
def test_an_overlap_is_a_share_and_has_no_order(one: Box, other: Box) -> None:
    overlap = one.iou(other)
    assert 0 <= overlap <= 1 + 1e-9
    assert overlap == pytest.approx(other.iou(one))
    assert one.iou(one) == (pytest.approx(1) if one.area > 0 else 0)


@examples
@given(width=st.floats(0.01, 0.4), height=st.floats(0.01, 0.4), x=st.floats(0, 0.1), y=st.floats(0, 0.1))
def test_boxes_apart_do_not_overlap(width: float, height: float, x: float, y: float) -> None:
    """Apart to the right, below, and both: there, two negative lengths have a positive product."""
    box = Box(x, y, x + width, y + height)
    for right, down in ((0.5, 0.0), (0.0, 0.5), (0.5, 0.5)):
        moved = Box(box.x0 + right, box.y0 + down, box.x1 + right, box.y1 + down)
        assert box.iou(moved) == moved.iou(box) == 0


@examples
@given(box=st.builds(Box.from_corners, *[st.floats(-3, 3)] * 4))
def test_a_clipped_box_lies_in_the_image(box: Box) -> None:
    clipped = box.clip()
    assert all(0 <= value <= 1 for value in clipped.xyxy)
    assert clipped.clip() == clipped
