"""From a box to the image of the micro pathway, v' = zoom(crop(v, box)). Knows Pillow, nothing about models.

Two geometries exist: the paper mentions none beyond "crop and zoom" (section 3.2), the authors' release
squares and grows the box, in training and in inference alike. An encoder or a tile of fixed size enlarges
every crop by itself. Where the number of an image's tokens follows its pixels, `zoomed` does it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import rgb

Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom exclusive
MOST_ELONGATED = 200  # length over breadth: Qwen's processors, and others, refuse a longer image
Geometry = Callable[[Box, tuple[int, int], int], "Rectangle | None"]
Size = tuple[int, int]  # width, height in pixels
# How many pixels a crop is enlarged to: as many as the whole image has, none, or a number.
CropPixels = Literal["auto", "original"] | int


@dataclass(frozen=True, slots=True)
class DynamicResolution:
    """How a family resizes images whose number of tokens follows their size, such as Qwen2-VL's.

    factor: both sides become multiples of it, and `factor` x `factor` pixels are one token. min_pixels,
    max_pixels: bounds of the pixels of an image; the aspect ratio is kept as closely as possible.
    """

    factor: int
    min_pixels: int
    max_pixels: int

    def fit(self, size: tuple[float, float]) -> Size:
        """(width, height) of an image of `size` as the model gets it: the rule of Qwen2-VL's processor.

        >>> DynamicResolution(28, 56 * 56, 12845056).fit((60, 60))
        (56, 56)
        """
        width, height = size
        resized = [round(side / self.factor) for side in size]  # in multiples of the factor
        pixels = resized[0] * resized[1] * self.factor**2
        if pixels > self.max_pixels:
            scale = math.sqrt(width * height / self.max_pixels)
            resized = [max(math.floor(side / scale / self.factor), 1) for side in size]
        elif pixels < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (width * height))
            resized = [math.ceil(side * scale / self.factor) for side in size]
        return (resized[0] * self.factor, resized[1] * self.factor)

    def tokens(self, size: tuple[float, float]) -> int:
        """Tokens of an image of `size`, those around it not counted."""
        width, height = self.fit(size)
        return width * height // self.factor**2

    def within(self, min_pixels: int | None, max_pixels: int | None) -> DynamicResolution:
        """The same with other bounds; None leaves one unchanged. UserError where no size satisfies them."""
        check_bounds(min_pixels, max_pixels)
        bounded = replace(
            self,
            min_pixels=self.min_pixels if min_pixels is None else min_pixels,
            max_pixels=self.max_pixels if max_pixels is None else max_pixels,
        )
        if bounded.min_pixels > bounded.max_pixels:
            raise UserError(
                f"No image has from {bounded.min_pixels} to {bounded.max_pixels} pixels: give a min_pixels "
                f"that is not above max_pixels. The checkpoint's own are {self.min_pixels} and "
                f"{self.max_pixels}."
            )
        return bounded


def zoomed(
    crop: Image.Image, image_size: Size, pixels: CropPixels, resolution: DynamicResolution | None
) -> Image.Image:
    """`crop` enlarged, "to maintain the original resolution" (section 3.3, v' = zoom(crop(v, box))), with
    bicubic interpolation; the same object where nothing is to be enlarged.

    image_size: (width, height) of the whole image. resolution: of the model, None where it enlarges crops by
    itself.
    """
    size = zoomed_size(crop.size, image_size, pixels, resolution)
    return crop if size == crop.size else rgb(crop).resize(size, Image.Resampling.BICUBIC)


def zoomed_size(
    crop_size: Size, image_size: Size, pixels: CropPixels, resolution: DynamicResolution | None
) -> Size:
    """(width, height) to which a crop is enlarged: `pixels` pixels with the crop's aspect ratio, in whole
    tokens, so that the model gets exactly this.

    Never more than the model takes, and never less than the crop has: it stays unchanged, and the model's own
    processor does what it does. pixels "auto": as many as the whole image has as the model gets it.

    >>> qwen = DynamicResolution(28, 56 * 56, 12845056)
    >>> zoomed_size((60, 60), (1500, 1000), "auto", qwen)
    (1232, 1232)
    >>> zoomed_size((60, 30), (1500, 1000), 50_000, qwen)
    (308, 168)
    >>> zoomed_size((60, 60), (1500, 1000), "original", qwen)
    (60, 60)
    """
    if resolution is None or pixels == "original":
        return crop_size
    wanted = _area(resolution.fit(image_size)) if pixels == "auto" else pixels
    assert isinstance(wanted, int)
    scale = math.sqrt(min(wanted, resolution.max_pixels) / _area(crop_size))
    width, height = resolution.fit((crop_size[0] * scale, crop_size[1] * scale))
    longest = MOST_ELONGATED * min(width, height)  # rounding can make a strip that a processor refuses
    width, height = min(width, longest), min(height, longest)
    enlarged = _area((width, height)) > max(_area(crop_size), _area(resolution.fit(crop_size)))
    return (width, height) if enlarged else crop_size


def crop_pixels_done(pixels: CropPixels, resolution: DynamicResolution | None) -> CropPixels:
    """What `pixels` comes to with a model: nothing is enlarged ("original") where it has no `resolution`.

    By this a run is known, so that runs of such a model are the same whatever the default is.
    """
    return "original" if resolution is None else pixels


def check_crops(pixels: CropPixels | None, resolution: DynamicResolution | None) -> None:
    """UserError for a number of pixels and a model that gives every crop its encoder's size."""
    if resolution is None and isinstance(pixels, int):
        raise needs_dynamic_resolution(f"crop_pixels={pixels}")


def check_bounds(min_pixels: object, max_pixels: object) -> None:
    """UserError for bounds that are no numbers of pixels."""
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{name} is a whole number of pixels, 1 or more, got {value!r}.")


def given_bounds(min_pixels: int | None, max_pixels: int | None) -> str:
    """Those of the bounds that were given, as a user writes them: "min_pixels=3136"."""
    bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    return ", ".join(f"{name}={value}" for name, value in bounds.items() if value is not None)


def needs_dynamic_resolution(given: str) -> UserError:
    """The error for a number of pixels, `given`, and a model that gives every image its encoder's size."""
    return UserError(
        f"{given} is for models whose images have as many tokens as their size requires, such as Qwen2.5-VL, "
        "and the encoder or the tiles of this one have one size: leave it out. docs/families.md lists the "
        "families that take it."
    )


def _area(size: Size) -> int:
    return size[0] * size[1]


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
