"""From a box to pixels, by hand and against a slow second writing of both geometries."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from dualfocus_lmms import Box, UserError
from dualfocus_lmms.zoom import (
    DynamicResolution,
    Rectangle,
    pad_to_square,
    paper_rectangle,
    release_rectangle,
    zoomed,
    zoomed_size,
)

GREY = (122, 116, 104)


def slow_paper(box: Box, size: tuple[int, int], margin: int) -> Rectangle | None:
    """Walks along both axes: the pixels that share some length with the box, then the margin."""
    spans = []
    for low, high, side in ((box.x0, box.x1, size[0]), (box.y0, box.y1, size[1])):
        low, high = round(max(low, 0) * side, 6), round(min(high, 1) * side, 6)
        touched = [pixel for pixel in range(side) if min(high, pixel + 1) > max(low, pixel)]
        if not touched:
            return None
        spans.append((max(touched[0] - margin, 0), min(touched[-1] + 1 + margin, side)))
    (left, right), (top, bottom) = spans
    return (left, top, right, bottom)


def slow_release(box: Box, size: tuple[int, int], margin: int) -> Rectangle | None:
    """Scale, square, clip, grow, clip, truncate, each in float32 arrays of (x, y)."""
    last = np.array(size, np.float32) - 1  # (2,): W-1, H-1
    low = (np.array(box.xyxy[:2]) * size).astype(np.float32)  # (2,): x0, y0
    high = (np.array(box.xyxy[2:]) * size).astype(np.float32)  # (2,): x1, y1
    if (low <= 1).all() and (high <= 1).all():
        return None
    centre, half = (low + high) / np.float32(2), (high - low).max() / np.float32(2)
    low, high = np.clip(centre - half, 0, last), np.clip(centre + half, 0, last)
    low, high = np.clip(low - np.float32(margin), 0, last), np.clip(high + np.float32(margin), 0, last)
    assert low.dtype == high.dtype == np.float32
    (left, top), (right, bottom) = low.astype(int).tolist(), high.astype(int).tolist()
    return (left, top, right, bottom) if right > left and bottom > top else None


def slow_grown(rectangle: Rectangle | None, size: tuple[int, int]) -> Rectangle | None:
    """Pixel by pixel, below or to the right first, until it is 200 times as long as broad at most."""
    if rectangle is None or 200 * min(size) < max(rectangle[2] - rectangle[0], rectangle[3] - rectangle[1]):
        return rectangle
    left, top, right, bottom = rectangle
    spans = [(left, right, size[0]), (top, bottom, size[1])]
    long, short = sorted((0, 1), key=lambda axis: spans[axis][1] - spans[axis][0], reverse=True)
    low, high, side = spans[short]
    longer = spans[long][1] - spans[long][0]
    below = True
    while 200 * (high - low) < longer:
        grow_high = (below or low == 0) and high < side
        low, high = (low, high + 1) if grow_high else (low - 1, high)
        below = not below
    return (left, low, right, high) if short == 1 else (low, top, high, bottom)


def random_cases(decimals: int | None) -> list[tuple[Box, tuple[int, int], int]]:
    """Boxes inside and outside, lines and points among them, on images from 1 x 1 pixel up."""
    rng = random.Random(decimals or 0)
    cases = []
    for _ in range(500):
        corners = [rng.uniform(-0.3, 1.3) for _ in range(4)]
        if decimals is not None:
            corners = [round(value, decimals) for value in corners]
        if rng.random() < 0.1:
            corners[2] = corners[0]
        if rng.random() < 0.1:
            corners[3] = corners[1]
        width, height = (rng.choice((1, 2, 7, 100, 333, 640, 1024, rng.randint(1, 1500))) for _ in range(2))
        cases.append((Box.from_corners(*corners), (width, height), rng.choice((0, 1, 25, 200))))
    return cases


@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_paper_on_random_boxes(decimals: int | None) -> None:
    for box, size, margin in random_cases(decimals):
        expected = slow_grown(slow_paper(box, size, margin), size)
        assert paper_rectangle(box, size, margin) == expected, (box, size, margin)


@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_release_on_random_boxes(decimals: int | None) -> None:
    for box, size, margin in random_cases(decimals):
        expected = slow_grown(slow_release(box, size, margin), size)
        assert release_rectangle(box, size, margin) == expected, (box, size, margin)


@pytest.mark.parametrize("geometry", [paper_rectangle, release_rectangle])
def test_every_crop_has_pixels_of_the_image(geometry) -> None:
    found = 0
    for box, (width, height), margin in random_cases(None) + random_cases(2):
        rectangle = geometry(box, (width, height), margin)
        if rectangle is not None:
            left, top, right, bottom = rectangle
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            found += 1
    assert found > 500


@pytest.mark.parametrize(
    ("box", "size", "margin", "expected"),
    [
        (Box(0.1, 0.2, 0.3, 0.4), (100, 50), 0, (10, 10, 30, 20)),
        (Box(0.1, 0.2, 0.3, 0.4), (100, 50), 5, (5, 5, 35, 25)),
        (Box(0.1, 0.2, 0.3, 0.4), (100, 50), 15, (0, 0, 45, 35)),
        (Box(0.101, 0.2, 0.301, 0.4), (100, 50), 0, (10, 10, 31, 20)),  # every pixel it touches
        (Box(0.29, 0.57, 0.58, 0.6), (100, 100), 0, (29, 57, 58, 60)),  # 0.29 * 100 = 28.999999999999996
        (Box(0, 0, 1, 1), (100, 50), 25, (0, 0, 100, 50)),
        (Box(-1, -1, 2, 2), (100, 50), 0, (0, 0, 100, 50)),
        (Box(0, 0.5, 1, 0.75), (1, 8), 0, (0, 4, 1, 6)),
        (Box(0.4, 0.1, 0.41, 0.9), (1, 10), 0, (0, 1, 1, 9)),
        (Box(0, 0.5, 1, 0.502), (1000, 1000), 0, (0, 499, 1000, 504)),  # Qwen refuses more than 200 : 1
        (Box(0, 0, 1, 0.002), (1000, 1000), 0, (0, 0, 1000, 5)),
        (Box(0, 0.999, 1, 1), (1000, 1000), 0, (0, 995, 1000, 1000)),
        (Box(0.5, 0, 0.501, 1), (1000, 1001), 0, (498, 0, 504, 1001)),
        (Box(0, 0.5, 1, 0.505), (1000, 1000), 0, (0, 500, 1000, 505)),  # just right
        (Box(0, 0.25, 1, 0.5), (1000, 4), 0, (0, 1, 1000, 2)),  # the image is no broader itself
        (Box(0.5, 0.2, 0.5, 0.4), (100, 50), 0, None),  # a line
        (Box(0.5, 0.2, 0.5, 0.4), (100, 50), 25, None),
        (Box(1.2, 0.2, 1.4, 0.4), (100, 50), 25, None),  # beside the image
        (Box(-0.4, 0.2, 0, 0.4), (100, 50), 0, None),
        (Box(0.5 - 1e-12, 0, 0.5 + 1e-12, 1), (100, 50), 0, None),  # thinner than rounding shows
    ],
)
def test_paper_by_hand(box, size, margin, expected) -> None:
    assert paper_rectangle(box, size, margin) == expected


@pytest.mark.parametrize(
    ("box", "size", "margin", "expected"),
    [
        # 10..30 x 10..20 -> a square of 20: 10..30 x 5..25 -> + 25: -15..55 x -20..50 -> clipped
        (Box(0.1, 0.2, 0.3, 0.4), (100, 50), 25, (0, 0, 55, 49)),
        # 400..600 x 400..500 -> 400..600 x 350..550 -> 375..625 x 325..575
        (Box(0.4, 0.4, 0.6, 0.5), (1000, 1000), 25, (375, 325, 625, 575)),
        # the square is clipped before it grows: 900..1000 -> 900..999 -> 875..999
        (Box(0.9, 0, 1, 0.1), (1000, 1000), 25, (875, 0, 999, 125)),
        # the last row and column are lost
        (Box(0, 0, 1, 1), (640, 480), 25, (0, 0, 639, 479)),
        # 28.999999999999996 in doubles is 29 in single precision
        (Box(0.29, 0.29, 0.58, 0.58), (100, 100), 0, (29, 29, 58, 58)),
        # a point grows to the margin
        (Box(0.5, 0.5, 0.5, 0.5), (200, 200), 25, (75, 75, 125, 125)),
        (Box(0.5, 0.5, 0.5, 0.5), (200, 200), 0, None),
        # beside the image: the margin at its edge
        (Box(1.5, 0, 1.6, 0.1), (200, 200), 25, (174, 0, 199, 45)),
        # within the first pixel, which the release refuses
        (Box(0, 0, 0, 0), (200, 200), 25, None),
        (Box(0, 0, 0.005, 0.005), (200, 200), 25, None),
        (Box(-0.5, -0.5, -0.1, -0.1), (200, 200), 25, None),
        # one pixel wide or high: no pixel is left
        (Box(0, 0, 1, 1), (1, 100), 25, None),
        (Box(0, 0, 1, 1), (100, 1), 25, None),
        (Box(0, 0, 1, 1), (2, 100), 25, (0, 0, 1, 99)),
    ],
)
def test_release_by_hand(box, size, margin, expected) -> None:
    assert release_rectangle(box, size, margin) == expected


def test_two_decimals_meet_the_pixel_grid() -> None:
    """Every corner that two decimals can name, against exact arithmetic."""
    for side in (100, 333, 640, 1000):
        for hundredths in range(100):
            box = Box(hundredths / 100, 0, 1, 1)
            exact = math.floor(Fraction(hundredths, 100) * side)
            assert paper_rectangle(box, (side, side), 0) == (exact, 0, side, side)


@pytest.mark.parametrize(
    ("size", "corner"), [((6, 2), (0, 2)), ((2, 6), (2, 0)), ((5, 2), (0, 1)), ((1, 4), (1, 0))]
)
def test_pad_to_square(size: tuple[int, int], corner: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    square = pad_to_square(image, GREY)
    side = max(size)
    assert square.size == (side, side)
    inside = (*corner, corner[0] + size[0], corner[1] + size[1])
    assert square.crop(inside).tobytes() == image.tobytes()
    assert sum(
        square.getpixel((x, y)) == GREY for x in range(side) for y in range(side)
    ) == side**2 - math.prod(size)


def test_a_square_stays_as_it_is() -> None:
    image = Image.new("RGB", (3, 3), "red")
    assert pad_to_square(image, GREY) is image


QWEN2_5 = DynamicResolution(28, 56 * 56, 3584 * 3584)


@pytest.mark.parametrize(
    ("crop", "image", "pixels", "seen"),
    [
        ((60, 60), (1500, 1000), "auto", (1232, 1232)),  # 1,936 tokens; the whole image has 1,944
        ((60, 60), (1500, 1000), "original", (60, 60)),
        ((20, 60), (1500, 1000), 50_000, (140, 392)),
        ((1000, 1000), (1500, 1000), 500_000, (1000, 1000)),  # never below what the crop has
        ((1500, 1000), (1500, 1000), "auto", (1500, 1000)),
        ((50, 50), (6000, 6000), "auto", (3584, 3584)),  # never beyond what the model takes
        ((50, 50), (100, 100), 10**9, (3584, 3584)),
        ((1, 1), (40, 40), "auto", (1, 1)),  # of which the model makes 56 x 56 itself, as of the image
        ((200, 1), (1500, 1000), "auto", (16800, 84)),
    ],
)
def test_a_crop_is_enlarged_to_the_pixels_of_the_image(crop, image, pixels, seen):
    assert zoomed_size(crop, image, pixels, QWEN2_5) == seen
    assert zoomed_size(crop, image, pixels, None) == crop


def test_what_a_model_enlarges_by_itself_and_what_is_large_enough_stays_the_same_object():
    crop = Image.new("RGB", (60, 60))
    assert zoomed(crop, (1500, 1000), "auto", None) is crop
    assert zoomed(crop, (1500, 1000), "original", QWEN2_5) is crop
    assert zoomed(crop, (60, 60), "auto", QWEN2_5) is crop


def test_the_zoom_is_bicubic():
    crop = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    seen = zoomed(crop, (400, 300), "auto", QWEN2_5)
    assert seen.size == (392, 308)
    assert seen.tobytes() == crop.resize((392, 308), Image.Resampling.BICUBIC).tobytes()
    assert zoomed(crop.convert("P"), (400, 300), "auto", QWEN2_5).mode == "RGB"


def test_an_enlarged_crop_is_what_the_model_gets_whatever_its_shape():
    """The model's own processor leaves it as it is, and never refuses it."""
    rng = random.Random(0)
    for resolution in (QWEN2_5, DynamicResolution(32, 256 * 256, 4096 * 4096)):
        enlarged = 0
        for _ in range(2000):
            image = (rng.randint(20, 3000), rng.randint(20, 3000))
            crop = tuple(rng.randint(1, side) for side in image)
            if max(crop) > 200 * min(crop):
                continue
            seen = zoomed_size(crop, image, rng.choice(["auto", rng.randint(1, 20_000_000)]), resolution)
            if seen == crop:
                continue
            enlarged += 1
            assert resolution.fit(seen) == seen
            assert resolution.tokens(seen) > resolution.tokens(crop)
            assert crop[0] * crop[1] < seen[0] * seen[1] <= resolution.max_pixels
            assert max(seen) <= 200 * min(seen)
        assert enlarged > 1000


def test_bounds_within_bounds():
    assert QWEN2_5.within(None, None) == QWEN2_5
    bounded = QWEN2_5.within(200_704, 1_605_632)
    assert (bounded.fit((60, 60)), bounded.fit((5000, 4000))) == ((448, 448), (1400, 1120))
    for bounds, named in (((5000, 4000), "5000"), ((None, 1000), "3136"), ((0, None), "min_pixels")):
        with pytest.raises(UserError, match=named):
            QWEN2_5.within(*bounds)
