"""What DualFocus may cost at most, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dualfocus_lmms.models.bench.modes import DUAL, MACRO, NAIVE, SKIPPING

BOUND_TOKENS = 576  # of an image: the bounds are for this many
_SHARE = (0.55, 0.6)  # of the questions that skip, for which the bound on skipping is
_TOKENS = 2.1
_MEMORY = 1.3  # and what the second image takes in the cache


@dataclass(frozen=True, slots=True)
class Limits:
    """Ratios of times at most. single, few, many: to the plain model at batch size 1, 4 to 8, from 16 on.
    release: to the release's way. skipping: to the plain model. None is no bound."""

    single: float
    few: float | None
    many: float | None
    release: float
    skipping: float

    def time(self, batch_size: int) -> float | None:
        """To the plain model at a batch size."""
        if batch_size == 1:
            return self.single
        if batch_size >= 16:
            return self.many
        return self.few if 4 <= batch_size <= 8 else None


LIMITS = {  # by the kind of device: set for 2 cores and size 100m, and for one GPU and size 7b
    "cpu": Limits(single=2.4, few=2.2, many=None, release=0.45, skipping=1.7),
    "cuda": Limits(single=2.6, few=None, many=2.2, release=0.15, skipping=1.6),
}


def bounds(
    rows: Sequence[dict[str, Any]], limits: Limits, image_tokens: int, image_bytes: int
) -> list[dict[str, Any]]:
    """What was asked of DualFocus, what was measured, and whether it holds; None where it cannot be judged.

    image_bytes: of one image's tokens in the cache.
    """
    peaks = {row["batch_size"]: row["peak_bytes"] for row in reversed(rows) if row["mode"] == MACRO}
    return [
        {
            "what": what,
            "batch_size": row["batch_size"],
            "engine": row["engine"],
            "limit": limit,
            "measured": measured,
            "holds": measured <= limit if image_tokens == BOUND_TOKENS else None,
        }
        for row in rows
        if row["mode"] in (DUAL, SKIPPING) and row["engine"] != NAIVE
        for what, limit, measured in _bounds(row, limits, peaks[row["batch_size"]], image_bytes)
    ]


def _bounds(
    row: dict[str, Any], limits: Limits, macro_peak: int | None, image_bytes: int
) -> list[tuple[str, float, float]]:
    """What is asked of a row of DualFocus: the ratio's name, its limit, what was measured."""
    size, time = row["batch_size"], row["time"]["median"]
    if row["mode"] == SKIPPING:
        near = _SHARE[0] <= row["skipped"] <= _SHARE[1]
        return [("time, skipping / macro only", limits.skipping, time)] if near else []
    found = [("LM tokens / macro only", _TOKENS, row["token_ratio"])]
    if (limit := limits.time(size)) is not None:
        found.append(("time / macro only", limit, time))
    found.append(("time / release's way", limits.release, row["time_to_release"]["median"]))
    if macro_peak is not None and row["peak_bytes"] is not None:
        limit = _MEMORY + size * image_bytes / macro_peak
        found.append(("peak memory / macro only", limit, row["peak_bytes"] / macro_peak))
    return found
