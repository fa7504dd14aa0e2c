"""Which answers of a run are right, how sure that is, and whether the chosen ones are right more often.

For any task whose answers are right or wrong; of graded ones, those with half of the points or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from dualfocus_lmms.results.report import tables
from dualfocus_lmms.results.report.tables import RIGHT, WAYS, Table
from dualfocus_lmms.tasks.common.uncertainty import mcnemar, wilson_interval

_STYLE = {"only selected right": "{:,.0f}", "only this right": "{:,.0f}", "p": "{:.2g}"}


def right_answers(samples: pd.DataFrame) -> Table:
    """One row for each task and way of answering. samples: see `tables`."""
    rows = [{"task": name, **row} for name, some in tables.parts(samples) for row in _rows(some)]
    note = (
        "Right: the share of answers with a score of at least "
        f"{RIGHT:.0f}, in percent, with Wilson's 95% interval. Only selected right, only this right: the "
        "questions on which the selected answer and that of the row differ; p: McNemar's exact test on them, "
        "two-sided."
    )
    return Table("right", "Right answers", pd.DataFrame(rows), note, _STYLE)


def _rows(samples: pd.DataFrame) -> Iterator[dict[str, Any]]:
    scores = samples.assign(micro=tables.micro_scores(samples))
    selected = scores["selected"] >= RIGHT
    for way in WAYS:
        right = scores[way] >= RIGHT
        low, high = wilson_interval(int(right.sum()), len(right))
        row: dict[str, Any] = {
            "answers": way,
            "n": len(right),
            "right": 100 * right.mean(),
            "low": low,
            "high": high,
        }
        if way in ("macro", "micro"):
            row["only selected right"] = int((selected & ~right).sum())
            row["only this right"] = int((right & ~selected).sum())
            row["p"] = mcnemar(selected.tolist(), right.tolist())
        yield row
