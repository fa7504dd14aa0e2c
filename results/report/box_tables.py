"""Where runs looked: boxes by their size, and by how well they fit annotated ones. samples: see `tables`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from dualfocus_lmms.results.coverage import should_have_looked
from dualfocus_lmms.results.report.tables import Table, micro_scores, parts

AREAS = (0.0, 1.0, 4.0, 10.0, 25.0, 50.0, 100.0)  # of a box, in percent of the image
ALL_OF_IT = 0.999  # of an annotated region: crops are whole pixels
COVERAGES = ("0", "0-50%", "50-100%", "100%")
IOUS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def boxes(samples: pd.DataFrame) -> Table:
    """Boxes by the share of the image they cover: how good a second look is through a small window."""
    bins = _binned(samples, "area", AREAS, "{:g}-{:g}%")
    note = (
        "Area: of the box, in percent of the image. Side: the square root of the crop's pixels, the median."
    )
    if samples["iou"].notna().any():
        note += " IoU: with the annotated box, the mean."
    return Table("boxes", "Boxes by area", _box_rows("area", bins), note, {"side": "{:.0f}"} | _BOX_STYLE)


def overlaps(samples: pd.DataFrame) -> Table:
    """Boxes by how well they fit the annotated one; empty where no box is annotated."""
    bins = _binned(samples, "iou", IOUS, "{:g}-{:g}")
    return Table("overlaps", "Boxes by IoU", _box_rows("IoU of", bins), "", {"side": "{:.0f}"} | _BOX_STYLE)


def located(samples: pd.DataFrame) -> Table:
    """How well boxes fit the annotated ones, task by task; empty where no box is annotated."""
    rows = [
        {
            "task": name,
            "samples": len(some),
            "with a box": 100 * some["iou"].notna().mean(),
            "IoU": some["iou"].fillna(0).mean(),
            "IoU above 0.5": 100 * (some["iou"] > 0.5).mean(),
            "coverage": 100 * some["coverage"].fillna(0).mean(),
            "all of it shown": 100 * (some["coverage"] >= ALL_OF_IT).mean(),
        }
        for name, some in parts(should_have_looked(samples[list(_LOCATED)]))
    ]
    note = (
        "Samples with an annotated box that had a second look, or should have; without a box IoU and "
        "coverage are 0. Coverage: the share of the annotated region, or regions, inside what was shown."
    )
    style = dict.fromkeys(("with a box", "IoU above 0.5", "coverage", "all of it shown"), "{:.1f}%")
    style |= _BOX_STYLE
    return Table("located", "Boxes against the annotated ones", pd.DataFrame(rows), note, style)


def by_coverage(samples: pd.DataFrame) -> Table:
    """Scores by how much of the annotated regions the crops show; empty where none is annotated."""
    known = samples.loc[samples["coverage"].notna(), ["coverage", *_NEEDED]]
    places = np.select(
        [known["coverage"] <= 0, known["coverage"] < 0.5, known["coverage"] < ALL_OF_IT], [0, 1, 2], 3
    )
    bins = [(name, known[places == place]) for place, name in enumerate(COVERAGES)]
    bins = [(name, some) for name, some in bins if len(some)] + ([("all", known)] if len(known) else [])
    note = (
        "Coverage: the share of the annotated region, or regions, inside the crop, or crops. Samples with an "
        "annotated region and a crop."
    )
    frame = _box_rows("coverage", bins)
    return Table("coverage", "Scores by coverage", frame, note, {"side": "{:.0f}"} | _BOX_STYLE)


_LOCATED = ("task", "annotated", "fallback", "iou", "coverage")
_NEEDED = ("crop_pixels", "iou", "macro", "micro", "selected", "pathway")
_BOX_STYLE = {"IoU": "{:.3f}", "micro chosen": "{:.1f}%"}


def _binned(
    samples: pd.DataFrame, column: str, edges: Sequence[float], name: str
) -> list[tuple[str, pd.DataFrame]]:
    """Samples with a number in a column by which two edges it lies between, and all of them."""
    samples = samples.loc[samples[column].notna(), [*dict.fromkeys([column, *_NEEDED])]]
    places = np.searchsorted(edges[1:-1], samples[column], side="right")
    binned = [
        (name.format(low, high), samples[places == place])
        for place, (low, high) in enumerate(pairwise(edges))
    ]
    return [
        *((label, some) for label, some in binned if len(some)),
        *([("all", samples)] if len(samples) else []),
    ]


def _box_rows(first: str, bins: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                first: label,
                "samples": len(some),
                "side": np.sqrt(some["crop_pixels"]).median(),
                "IoU": some["iou"].mean(),
                "macro": some["macro"].mean(),
                "micro": micro_scores(some).mean(),
                "selected": some["selected"].mean(),
                "micro chosen": 100 * (some["pathway"] == "micro").mean(),
            }
            for label, some in bins
        ]
    ).dropna(axis="columns", how="all")
