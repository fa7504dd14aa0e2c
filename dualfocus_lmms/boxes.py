"""Boxes, and how each model family writes one. Knows nothing about images, prompts or models.

A `Box` is always in fractions of the ORIGINAL image. What a model reads and writes is a `BoxFormat`; its
frame (the original image, the image padded to a square, or the resized input) is data with a round trip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Frame = Literal["original", "square", "resized"]
Order = Literal["xyxy", "yxyx"]
_PLACES = {"xyxy": (0, 1, 2, 3), "yxyx": (1, 0, 3, 2)}  # of x, y, x, y in each order, and of them in these

# A number that stands alone: not a part of a word, a version or a percentage.
_NUMBER = r"(?<![\w.+-])([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)(?!\w|\.\d|\s*%)"
_PAIR = rf"{_NUMBER}[\"']?(?:\s*[,;]\s*|\s+)[\"']?{_NUMBER}"
_FOUR = re.compile(rf"{_PAIR}[\s,;()\[\]\"']+{_PAIR}")  # x, y, x, y with any brackets between the corners
_NAMED = re.compile(
    rf"\b([xy]_?(?:0|1|2|min|max)|left|top|right|bottom)\b[\"']?\s*[:=]\s*[\"']?{_NUMBER}", re.IGNORECASE
)
PADDING = 0.1  # shares of its width and height by which each of several regions grows on each side
MOST_SHARED = 0.5  # intersection over union up to which two boxes are two regions
_LARGEST = 1e9  # no coordinate is larger: an endless run of digits is not a box
_NAMED_ORDERS = (
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
)


@dataclass(frozen=True, slots=True)
class Box:
    """A region of an image, corners (x0, y0) top left and (x1, y1) bottom right.

    Coordinates are fractions of the original, unpadded image. A box that a model generated may reach outside
    0..1; `clip` cuts it to the image. Corners must be finite and in order (ValueError otherwise).
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.xyxy):
            raise ValueError(f"A box needs four finite numbers, got {self.xyxy}.")
        if self.x0 > self.x1 or self.y0 > self.y1:
            raise ValueError(f"A box needs x0 <= x1 and y0 <= y1, got {self.xyxy}.")

    @classmethod
    def from_corners(cls, xa: float, ya: float, xb: float, yb: float) -> Box:
        """The box between two opposite corners, given in any order."""
        return cls(min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb))

    @classmethod
    def around(cls, boxes: Iterable[Box]) -> Box:
        """The smallest box around one or more boxes."""
        x0, y0, x1, y1 = zip(*(box.xyxy for box in boxes), strict=True)
        return cls(min(x0), min(y0), max(x1), max(y1))

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1), fractions of the original image."""
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def area(self) -> float:
        """Share of the image that the box covers, when it lies inside the image."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def clip(self) -> Box:
        """The part inside the image; a box wholly outside becomes a line or a point on the border."""
        return Box(*(min(max(value, 0.0), 1.0) for value in self.xyxy))

    def grown(self, share: float) -> Box:
        """The box with `share` of its width more on its left and right, of its height above and below."""
        dx, dy = share * (self.x1 - self.x0), share * (self.y1 - self.y0)
        return Box(self.x0 - dx, self.y0 - dy, self.x1 + dx, self.y1 + dy)

    def within(self, outer: Box) -> Box:
        """A box in fractions of a region `outer`, cut to it: in fractions of what `outer` is a region of.

        >>> Box(0.5, 0.5, 1.0, 2.0).within(Box(0.25, 0.0, 0.5, 0.5))
        Box(x0=0.375, y0=0.25, x1=0.5, y1=0.5)
        """
        inside, width, height = self.clip(), outer.x1 - outer.x0, outer.y1 - outer.y0
        x0, x1 = (outer.x0 + value * width for value in (inside.x0, inside.x1))
        y0, y1 = (outer.y0 + value * height for value in (inside.y0, inside.y1))
        return Box(x0, y0, x1, y1)

    def iou(self, other: Box) -> float:
        """Intersection over union, 0 to 1; 0 when both boxes are empty."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        shared = max(width, 0.0) * max(height, 0.0)
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class BoxFormat:
    """How one model family writes a box.

    template: Python format string with four fields, e.g. "[{:.2f}, {:.2f}, {:.2f}, {:.2f}]".
    scale: the coordinate of the far edge of the frame: 1 for fractions, 1000 for thousandths. Ignored for
        frame "resized", whose unit is the pixel of the resized input.
    frame: "original" (the unpadded image), "square" (the image centred on a square of its longer side) or
        "resized" (the model's resized input; `input_size` must then be given).
    order: which coordinate of a corner is written first.

    >>> BoxFormat("[{:d}, {:d}, {:d}, {:d}]", scale=1000, order="yxyx").write(Box(0.1, 0.2, 0.3, 0.4), (8, 6))
    '[200, 100, 400, 300]'
    """

    template: str = "[{:.2f}, {:.2f}, {:.2f}, {:.2f}]"
    scale: float = 1.0
    frame: Frame = "original"
    order: Order = "xyxy"

    def write(self, box: Box, image_size: tuple[int, int], input_size: tuple[int, int] | None = None) -> str:
        """The text for `box`. Sizes are (width, height) in pixels: the original image, the resized input."""
        offset_x, offset_y, scale_x, scale_y = self._affine(image_size, input_size)
        values = [
            value * scale + offset
            for value, scale, offset in zip(
                box.xyxy, (scale_x, scale_y) * 2, (offset_x, offset_y) * 2, strict=True
            )
        ]
        if "d}" in self.template:
            values = [round(value) for value in values]
        return self.template.format(*(values[place] for place in _PLACES[self.order]))

    def read(
        self, text: str, image_size: tuple[int, int], input_size: tuple[int, int] | None = None
    ) -> Box | None:
        """The first box in a reply, or None without one.

        Accepts what models generate: any brackets or tags, JSON lists and named corners, no leading
        zero, corners in any order. Integers from 2 to 1000 in a reply to a fraction format are thousandths,
        and a reply to any other format whose numbers all lie below 2 gives fractions of the frame. Values
        outside the frame are kept. Percentages are not a box.
        """
        written = _written_boxes(text, self.order)
        return self._box(written[0], image_size, input_size) if written else None

    def write_all(
        self, boxes: Iterable[Box], image_size: tuple[int, int], input_size: tuple[int, int] | None = None
    ) -> str:
        """The text for several boxes: each as `write` has it, with a comma and a blank between them."""
        return ", ".join(self.write(box, image_size, input_size) for box in boxes)

    def read_all(
        self, text: str, image_size: tuple[int, int], input_size: tuple[int, int] | None = None
    ) -> list[Box]:
        """Every box in a reply, in its order; `read` returns the first of them."""
        found = (self._box(written, image_size, input_size) for written in _written_boxes(text, self.order))
        return [box for box in found if box is not None]

    def _box(
        self, written: Sequence[str], image_size: tuple[int, int], input_size: tuple[int, int] | None
    ) -> Box | None:
        """The box of four numbers (x, y, x, y) as they are written, None where one is too large."""
        values = [float(value) for value in written]
        if max(abs(value) for value in values) > _LARGEST:
            return None
        integers = all(value.strip("+-.").isdigit() for value in written)
        offset_x, offset_y, scale_x, scale_y = self._affine(image_size, input_size)
        edges = (self.scale, self.scale) if input_size is None or self.frame != "resized" else input_size
        largest = max(abs(value) for value in values)
        if edges == (1, 1) and integers and 1 < largest <= 1000:
            values = [value / 1000 for value in values]
        elif min(edges) > 1 and largest < 2:
            values = [value * edge for value, edge in zip(values, edges * 2, strict=True)]
        xa, ya, xb, yb = (
            (value - offset) / scale
            for value, scale, offset in zip(
                values, (scale_x, scale_y) * 2, (offset_x, offset_y) * 2, strict=True
            )
        )
        return Box.from_corners(xa, ya, xb, yb)

    def _affine(
        self, image_size: tuple[int, int], input_size: tuple[int, int] | None
    ) -> tuple[float, float, float, float]:
        """(offset_x, offset_y, scale_x, scale_y) with written = fraction * scale + offset."""
        width, height = image_size
        if self.frame == "original":
            return (0.0, 0.0, self.scale, self.scale)
        if self.frame == "square":
            side = max(width, height)
            return (
                (side - width) / 2 / side * self.scale,
                (side - height) / 2 / side * self.scale,
                width / side * self.scale,
                height / side * self.scale,
            )
        if input_size is None:
            raise ValueError("A box in the frame of the resized input needs input_size=(width, height).")
        return (0.0, 0.0, float(input_size[0]), float(input_size[1]))


def distinct(boxes: Iterable[Box]) -> list[Box]:
    """The boxes in order, without those that overlap one before them by more than MOST_SHARED.

    >>> distinct([Box(0, 0, 0.5, 0.5), Box(0, 0, 0.5, 0.4), Box(0.6, 0, 1, 0.5)])
    [Box(x0=0, y0=0, x1=0.5, y1=0.5), Box(x0=0.6, y0=0, x1=1, y1=0.5)]
    """
    kept: list[Box] = []
    for box in boxes:
        if all(box.iou(other) <= MOST_SHARED and box != other for other in kept):
            kept.append(box)
    return kept


def in_reading_order(boxes: Iterable[Box]) -> list[Box]:
    """The boxes line by line from the top, and from left to right in a line.

    A line has the highest box that is left, and all whose centre lies above that one's lower edge.

    >>> right, left, below = Box(0.6, 0.1, 0.9, 0.3), Box(0.1, 0.15, 0.4, 0.35), Box(0, 0.5, 0.2, 0.7)
    >>> in_reading_order([below, right, left]) == [left, right, below]
    True
    """
    waiting = sorted(boxes, key=lambda box: (box.y0, box.x0))
    ordered: list[Box] = []
    while waiting:
        end = waiting[0].y1
        line = [box for box in waiting if box is waiting[0] or (box.y0 + box.y1) / 2 < end]
        waiting = [box for box in waiting if box not in line]
        ordered += sorted(line, key=lambda box: (box.x0, box.y0))
    return ordered


def _written_boxes(text: str, order: Order) -> list[tuple[str, ...]]:
    """The coordinates (x, y, x, y) of each box in a reply, as they are written. order: that of coordinates
    without names."""
    named = [(name.lower().replace("_", ""), value) for name, value in _NAMED.findall(text)]
    for names in _NAMED_ORDERS:
        if found := list(_named_boxes(named, names)):
            return found
    return [tuple(match.groups()[place] for place in _PLACES[order]) for match in _FOUR.finditer(text)]


def _named_boxes(named: Iterable[tuple[str, str]], order: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The coordinates of named corners in `order`; of a name that comes again too early, the first counts."""
    corners: dict[str, str] = {}
    for name, value in named:
        if name in order:
            corners.setdefault(name, value)
        if len(corners) == len(order):
            yield tuple(corners[name] for name in order)
            corners = {}
