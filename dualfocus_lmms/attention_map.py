"""A model's attention to the parts of an image, small enough for a trace. Knows no model."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from dualfocus_lmms.json_text import STRICT

SIDE = 32  # most cells along a side
MOST_BYTES = 1_600  # of a map in the JSON of a trace
_LEAST = 1e-3  # cells; of an image that is next to nothing beside its padding


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """Attention to rows x columns cells of an image, SIDE each way at most, one byte a cell.

    area: left, top, right, bottom of all cells together, which are of one size, as fractions of the image;
    the cells at its border may reach beyond it. lowest and highest: what the bytes 0 and 255 stand for, those
    between evenly. cells: the bytes, row by row, in base64.
    """

    rows: int
    columns: int
    area: tuple[float, float, float, float]
    lowest: float
    highest: float
    cells: str

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    def __post_init__(self) -> None:
        left, top, right, bottom = self.area
        sides = 1 <= self.rows <= SIDE and 1 <= self.columns <= SIDE
        covers = min(right - left, bottom - top) > 0.5
        if not (sides and covers and len(self._bytes) == self.rows * self.columns):
            raise ValueError(f"no map of {self.rows} x {self.columns} cells on {self.area}")

    @classmethod
    def of(cls, weights: Image.Image, area: tuple[float, float, float, float]) -> AttentionMap:
        """The map of finite weights, a pixel of mode F each; of their means, if more than SIDE."""
        size = min(weights.width, SIDE), min(weights.height, SIDE)
        means = weights.resize(size, Image.Resampling.BOX)
        extremes: Any = means.getextrema()
        lowest, highest = (float(f"{value:.6g}") for value in extremes)
        steps = 255 / (highest - lowest) if highest > lowest else 0.0
        levels = means.point(lambda value: value * steps + (0.5 - lowest * steps)).convert("L")
        return cls(
            rows=levels.height,
            columns=levels.width,
            area=tuple(round(edge, 6) for edge in area),  # type: ignore[arg-type]
            lowest=lowest,
            highest=highest,
            cells=b64encode(levels.tobytes()).decode("ascii"),
        )

    @property
    def values(self) -> list[list[float]]:
        """Rows of the attention to each cell, within half a step of 255 of what it was."""
        step = (self.highest - self.lowest) / 255
        found = [self.lowest + level * step for level in self._bytes]
        return [found[start : start + self.columns] for start in range(0, len(found), self.columns)]

    def image(self, size: tuple[int, int]) -> Image.Image:
        """The attention to the whole image, grey, of `size`: 0 is the lowest, 255 the highest."""
        grid = Image.frombytes("L", (self.columns, self.rows), self._bytes)
        left, top, right, bottom = self.area
        x0, x1 = _inside(left, right, self.columns)
        y0, y1 = _inside(top, bottom, self.rows)
        return grid.resize(size, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))

    @property
    def _bytes(self) -> bytes:
        return b64decode(self.cells, validate=True)


def _inside(start: float, end: float, cells: int) -> tuple[float, float]:
    """(first, end) of the image, 0 to 1, among cells that cover start to end; never empty."""
    first = min(max(-start / (end - start) * cells, 0.0), cells - _LEAST)
    return first, max(min((1 - start) / (end - start) * cells, cells), first + _LEAST)
