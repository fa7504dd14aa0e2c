"""Annotated boxes of official files, which are in pixels, as fractions of the image."""

from __future__ import annotations

from typing import Any, Literal

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.errors import UserError

Corners = Literal["[x0, y0, x1, y1]", "[x, y, width, height]"]  # how a file writes one


def read_boxes(value: Any, size: tuple[int, int], where: str, column: str, form: Corners) -> list[Box]:
    """The boxes of a list in pixels of an image of `size`, cut to it, as fractions; without those that lie
    outside. UserError that names `where` and the column, for anything else."""
    width, height = size
    try:
        if not isinstance(value, (list, tuple)):
            raise TypeError("not a list")
        found = []
        for left, top, right, bottom in value:
            if form == "[x, y, width, height]":
                right, bottom = left + right, top + bottom
            found.append(Box(left / width, top / height, right / width, bottom / height).clip())
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where}: {column!r} must be a list of boxes {form} in pixels, got {value!r}."
        ) from error
    return [box for box in found if box.area > 0]


def around(boxes: list[Box]) -> list[float] | None:
    """The region around all boxes as a document has it, None without one."""
    return list(Box.around(boxes).xyxy) if boxes else None


def corners(boxes: list[Box]) -> list[list[float]]:
    """Boxes as a document has them: x0, y0, x1, y1."""
    return [list(box.xyxy) for box in boxes]
