"""What figures need of every trace, as columns that are filled while the traces are found. Knows no task.

columns = TraceColumns()
traces, damaged = find_traces("runs/first/traces", columns.add)
print(columns.at(traces.rows)["ppl_macro"].mean())
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.trace import Look, Trace
from dualfocus_lmms.types import Answer

COSTS = (
    *(
        f"{what}_{stage}"
        for what in ("seconds", "tokens", "encodes")
        for stage in ("macro", "locate", "micro")
    ),
    *("area", "crop_pixels", "pixels_macro", "pixels_micro"),
)
TEXTS = ("pathway", "fallback", "text_macro", "text_micro")
BOX = ("x0", "y0", "x1", "y1")
SIZE = ("width", "height")
_CROP = ("left", "top", "right", "bottom")
_NUMBERS = (*COSTS, "ppl_macro", "ppl_micro", *BOX, *SIZE, *_CROP)
_NOTHING = (np.nan,) * 4

Crops = Sequence[Sequence[float]]


class TraceColumns:
    """Some 220 bytes of each trace, in the order in which they are added, and each text once.

    Columns: TEXTS; ppl_macro, ppl_micro; COSTS, see `outcomes.Outcomes.costs`; the box, BOX, as fractions of
    the image, nan without one; SIZE of the image in pixels.
    """

    def __init__(self) -> None:
        self._numbers = array("d")
        self._codes = array("i")
        self._known: dict[str | None, int] = {}
        self._several: dict[int, Crops] = {}

    @classmethod
    def of(cls, traces: Iterable[Trace]) -> TraceColumns:
        """The columns of these traces. UserError where a number of one is too large for a float."""
        columns = cls()
        for trace in traces:
            try:
                columns.add(trace)
            except OverflowError as error:
                raise UserError(
                    f"The trace of {trace.question_id!r:.80} is damaged ({error}): delete its line, and run "
                    "the same command with resume=True."
                ) from error
        return columns

    def __len__(self) -> int:
        return len(self._codes) // len(TEXTS)

    def add(self, trace: Trace) -> None:
        """OverflowError, and nothing is added, where a number is too large for a float."""
        micro = None if trace.micro is None else trace.micro.text
        texts = (trace.selection.pathway, trace.fallback, trace.macro.text, micro)
        ppls = (trace.ppl.get("macro", np.nan), trace.ppl.get("micro", np.nan))
        shown = trace.shown
        crop = shown[0] if shown else _NOTHING
        numbers = array("d", (*costs_of(trace), *ppls, *(trace.box or _NOTHING), *trace.image_size, *crop))
        if len(shown) > 1:
            self._several[len(self)] = shown
        self._numbers += numbers
        self._codes.extend(self._known.setdefault(text, len(self._known)) for text in texts)

    def at(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """The columns of some rows; a view where they are all of them in order."""
        texts = np.array([*self._known, None], dtype=object)  # None: of no text, to be an array of objects
        codes, numbers = (_taken(values, rows) for values in (self._all_codes, self._all_numbers))
        frame = pd.DataFrame(numbers[:, : -len(_CROP)], columns=_NUMBERS[: -len(_CROP)], copy=False)
        columns = {
            name: pd.Series(texts[some], dtype=object) for name, some in zip(TEXTS, codes.T, strict=True)
        }
        return pd.concat([pd.DataFrame(columns, copy=False), frame], axis=1)

    def shown(self, row: int) -> Crops:
        """The crops of a row's second look, left, top, right, bottom in pixels; none without one."""
        if row in self._several:
            return self._several[row]
        crop = self._all_numbers[row, -len(_CROP) :]
        return [] if np.isnan(crop[0]) else [crop.tolist()]

    @property
    def _all_numbers(self) -> NDArray[np.float64]:
        return np.frombuffer(self._numbers, float).reshape(-1, len(_NUMBERS))

    @property
    def _all_codes(self) -> NDArray[np.int32]:
        return np.frombuffer(self._codes, np.int32).reshape(-1, len(TEXTS))


def _taken(values: NDArray, rows: NDArray[np.int64]) -> NDArray:
    whole = len(rows) == len(values) and bool((rows == np.arange(len(rows))).all())
    return values if whole else values[rows]


def costs_of(trace: Trace) -> list[float]:
    """COSTS of a trace."""
    looks: Sequence[Trace | Look] = trace.looks or [trace]
    stages: list[list[Answer | None]] = [
        [trace.macro],
        [look.locate for look in looks],
        [look.micro for look in looks],
    ]
    usages = [[answer.usage for answer in stage if answer is not None] for stage in stages]
    costs = [
        sum(getattr(usage, what) for usage in stage) if stage else np.nan
        for what in ("seconds", "tokens", "encodes")
        for stage in usages
    ]
    area = pixels = np.nan
    if trace.box is not None:
        x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in trace.box)
        area = 100 * max(x1 - x0, 0.0) * max(y1 - y0, 0.0)
    if trace.shown:
        pixels = sum((right - left) * (bottom - top) for left, top, right, bottom in trace.shown)
    one = () if trace.crop_size is None else (trace.crop_size,)
    whole = () if trace.input_size is None else (trace.input_size,)
    sizes: list[tuple[tuple[int, int], ...]] = [whole, trace.crop_sizes or one]
    seen = [sum(width * height for width, height in some) if some else np.nan for some in sizes]
    return [*costs, area, pixels, *seen]
