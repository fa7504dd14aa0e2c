"""How much of the annotated regions a second look showed. Knows no run and no task.

coverage([(0, 0, 256, 512)], (512, 512), [(0.25, 0.0, 0.75, 0.5)])  # 0.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.types import Fallback

Corners = tuple[float, float, float, float]  # left, top, right, bottom


def coverage(
    crops: Sequence[Sequence[float]], image_size: tuple[float, float], regions: Sequence[Sequence[float]]
) -> float:
    """The share of the annotated regions that lies inside the crops, 0 to 1; what several share counts once.

    crops: left, top, right, bottom in pixels of the image. image_size: (width, height). regions: x0, y0, x1,
    y1 as fractions of the image. nan without a crop, and without a region that has an area.
    """
    sides = np.array(image_size * 2, dtype=float)
    wanted = [np.clip(np.array(region, dtype=float), 0, 1) * sides for region in regions]
    shown = [np.array(crop, dtype=float) for crop in crops]
    if not shown or not wanted:
        return np.nan
    # The edges of all rectangles cut the image into cells, each inside or outside every rectangle.
    edges = np.array([*wanted, *shown])
    x, y = np.unique(edges[:, ::2]), np.unique(edges[:, 1::2])
    cells = np.outer(np.diff(y), np.diff(x))  # (rows, columns) pixels
    is_wanted, is_shown = (_inside(some, x, y) for some in (wanted, shown))
    area = cells[is_wanted].sum()
    return float(cells[is_wanted & is_shown].sum() / area) if area > 0 else np.nan


def _inside(rectangles: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(rows, columns) whether a cell between the edges y and x lies in one of the rectangles."""
    found = np.zeros((len(y) - 1, len(x) - 1), dtype=bool)
    for left, top, right, bottom in rectangles:
        found |= np.outer((top <= y[:-1]) & (y[1:] <= bottom), (left <= x[:-1]) & (x[1:] <= right))
    return found


def should_have_looked(table: pd.DataFrame) -> pd.DataFrame:
    """The samples with an annotated region that had a second look, or should have. table: of `Outcomes`."""
    return table[table["annotated"] & ~table["fallback"].isin([Fallback.SKIPPED, Fallback.MACRO_ONLY])]


def annotated_regions(
    doc: Mapping[str, Any], columns: Mapping[str, Any]
) -> tuple[Corners | None, list[Corners]]:
    """(box, regions) of a document: the annotated box, or the one around all regions; and each region.

    columns: the task's `metadata.dualfocus`, which may name the column of one `box`, of several `boxes`, or
    of both. None and no region where the document has none.
    """
    box = doc[columns["box"]] if columns.get("box") else None
    regions = [_corners(one) for one in (doc[columns["boxes"]] or ())] if columns.get("boxes") else []
    if box is not None:
        return _corners(box), regions or [_corners(box)]
    return (Box.around(Box(*region) for region in regions).xyxy if regions else None), regions


def _corners(box: Sequence[float]) -> Corners:
    left, top, right, bottom = (float(value) for value in box)
    return left, top, right, bottom
