"""What DualFocus may cost at most, by device and batch size."""

from __future__ import annotations

from typing import Any

import pytest

from dualfocus_lmms.models.bench.bounds import LIMITS, bounds
from dualfocus_lmms.models.bench.modes import DUAL, MACRO, SKIPPING


def row(mode: str, batch_size: int, **figures: Any) -> dict[str, Any]:
    made = {
        "mode": mode, "engine": "shared", "batch_size": batch_size, "skipped": 0, "peak_bytes": 1000,
        "time": {"median": 2.3}, "time_to_release": {"median": 0.4}, "token_ratio": 2.05,
    }  # fmt: skip
    return made | figures


@pytest.mark.parametrize(
    ("figures", "broken"),
    [
        ({}, []),
        ({"time": {"median": 2.5}}, ["time / macro only"]),
        ({"time_to_release": {"median": 0.46}}, ["time / release's way"]),
        ({"token_ratio": 2.2}, ["LM tokens / macro only"]),
        ({"peak_bytes": 1400}, []),  # 1.3 times 1000, and 200 for the second image
        ({"peak_bytes": 1501}, ["peak memory / macro only"]),
        ({"batch_size": 4}, ["time / macro only"]),
        ({"batch_size": 8}, ["time / macro only"]),
        ({"batch_size": 16}, []),  # no bound on the time
    ],
)
def test_a_bound_holds_up_to_its_limit(figures: dict[str, Any], broken: list[str]):
    size = figures.get("batch_size", 1)
    measured = bounds(
        [row(MACRO, size), row(DUAL, **{"batch_size": size} | figures)], LIMITS["cpu"], 576, 200
    )
    assert [bound["what"] for bound in measured if not bound["holds"]] == broken


@pytest.mark.parametrize(
    ("skipped", "time", "holds"),
    [(0.58, 1.69, [True]), (0.58, 1.71, [False]), (0.5, 1.6, []), (0.7, 1.6, [])],
)
def test_the_bound_on_skipping_is_for_its_share(skipped: float, time: float, holds: list[bool]):
    skipping = row(SKIPPING, 1, skipped=skipped, time={"median": time}, time_to_release=None, peak_bytes=None)
    assert [bound["holds"] for bound in bounds([row(MACRO, 1), skipping], LIMITS["cpu"], 576, 200)] == holds


@pytest.mark.parametrize(
    ("device", "size", "limit"),
    [
        *[("cpu", 1, 2.4), ("cpu", 2, None), ("cpu", 8, 2.2), ("cpu", 16, None)],
        *[("cuda", 1, 2.6), ("cuda", 4, None), ("cuda", 16, 2.2), ("cuda", 32, 2.2)],
    ],
)
def test_the_bound_on_the_time_depends_on_device_and_batch_size(device: str, size: int, limit: float | None):
    found = bounds([row(MACRO, size), row(DUAL, size)], LIMITS[device], 576, 200)
    assert [one["limit"] for one in found if one["what"] == "time / macro only"] == [limit] * (
        limit is not None
    )


def test_bounds_are_judged_at_576_tokens_an_image_and_without_memory_where_none_is_known():
    figures = [row(MACRO, 1, peak_bytes=None), row(DUAL, 1, peak_bytes=None)]
    assert {bound["holds"] for bound in bounds(figures, LIMITS["cpu"], 16, 200)} == {None}
    assert "peak memory / macro only" not in [
        bound["what"] for bound in bounds(figures, LIMITS["cpu"], 576, 200)
    ]
    assert bounds([row(MACRO, 1), row(DUAL, 1, engine="naive")], LIMITS["cpu"], 576, 200) == []
