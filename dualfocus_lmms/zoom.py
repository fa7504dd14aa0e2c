"""From a box to the image of the micro pathway. Knows Pillow, nothing about models.

Two geometries exist: the paper mentions none beyond "crop and zoom" (section 3.2), the authors' release
squares and grows the box, in training and in inference alike.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

from PIL import Image

from dualfocus_lmms.boxes import Box

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom exclusive
MOST_ELONGATED = 200  # length over breadth: Qwen's processors, and others, refuse a longer picture
Geometry = Callable[[Box, tuple[int, int], int], "Rectangle | None"]


def paper_rectangle(box: Box, image_size: tuple[int, int], margin: int) -> Rectangle | None:
    """Every pixel that `box` touches, grown by `margin` pixels and cut to the image (section 3.2), then
    `thickened`.

    image_size is (width, height). None when the box, cut to the image, has no area.
    """
    width, height = image_size
    inside = box.clip()
    if inside.area == 0:
        return None
    left, top = math.floor(_pixels(inside.x0, width)), math.floor(_pixels(inside.y0, height))
    right, bottom = math.ceil(_pixels(inside.x1, width)), math.ceil(_pixels(inside.y1, height))
    left, top = max(left - margin, 0), max(top - margin, 0)
    right, bottom = min(right + margin, width), min(bottom + margin, height)
    return _thickened_or_none((left, top, right, bottom), image_size)


def release_rectangle(box: Box, image_size: tuple[int, int], margin: int) -> Rectangle | None:
    """The authors' release: square of the longer side, clip to W-1 and H-1, grow, clip, truncate; then
    `thickened`, which only changes crops of images that are nearly as thin.

    Every step rounds to float32 as the release does: in doubles, one corner in a few would truncate to the
    pixel before. None when no pixel is left (an image one pixel wide or high), and for a box within the
    first pixel, which the release refuses.
    """
    width, height = image_size
    xa, ya, xb, yb = (_f32(value * side) for value, side in zip(box.xyxy, (width, height) * 2, strict=True))
    if max(xa, ya, xb, yb) <= 1:
        return None
    half = max(_f32(xb - xa), _f32(yb - ya)) / 2
    centre_x, centre_y = _f32(xa + xb) / 2, _f32(ya + yb) / 2
    corners = [centre_x - half, centre_y - half, centre_x + half, centre_y + half]
    for grow in (0, margin):
        corners = [
            min(max(_f32(value + sign * grow), 0), side - 1)
            for value, sign, side in zip(corners, (-1, -1, 1, 1), (width, height) * 2, strict=True)
        ]
    left, top, right, bottom = (int(value) for value in corners)
    return _thickened_or_none((left, top, right, bottom), image_size)


def thickened(rectangle: Rectangle, image_size: tuple[int, int]) -> Rectangle:
    """`rectangle` with its shorter side grown to 1 / MOST_ELONGATED of the longer, where the image has that.

    Some processors refuse a thinner crop. It grows by as few pixels as that takes, on both sides alike.

    >>> thickened((0, 500, 1000, 502), (1000, 1000))
    (0, 499, 1000, 504)
    """
    left, top, right, bottom = rectangle
    width, height = image_size
    least = math.ceil(max(right - left, bottom - top) / MOST_ELONGATED)
    (left, right), (top, bottom) = _at_least(least, left, right, width), _at_least(least, top, bottom, height)
    return (left, top, right, bottom)


def _thickened_or_none(rectangle: Rectangle, image_size: tuple[int, int]) -> Rectangle | None:
    """None where no pixel is left."""
    left, top, right, bottom = rectangle
    return thickened(rectangle, image_size) if right > left and bottom > top else None


def _at_least(least: int, low: int, high: int, side: int) -> tuple[int, int]:
    """The span from `low` to `high` with `least` pixels or more, where an image of `side` pixels has them."""
    missing = least - (high - low)
    if missing <= 0 or least > side:
        return low, high
    low = max(min(low - missing // 2, side - least), 0)
    return low, low + least


def pad_to_square(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """`image` centred on a square of its longer side filled with `color` (RGB, 0-255), as LLaVA-1.5 does."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    square = Image.new("RGB", (side, side), color)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _f32(value: float) -> float:
    """`value` rounded to single precision."""
    return struct.unpack("f", struct.pack("f", value))[0]


def _pixels(fraction: float, side: int) -> float:
    """`fraction` of `side`, without the rounding error that would move a whole number to the next pixel."""
    return round(fraction * side, 6)
