"""Which answers of a run are right, how sure that is, and whether the chosen ones are right more often.

For any task whose answers are right or wrong; of graded ones, those with half of the points or more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from dualfocus_lmms.results.report import by_question, tables
from dualfocus_lmms.results.report.tables import RIGHT, WAYS, Table

_STYLE = {"only selected right": "{:,.0f}", "only this right": "{:,.0f}", "p": "{:.2g}"}


def right_answers(samples: pd.DataFrame) -> Table:
    """One row for each task and way of answering. samples: see `tables`."""
    rows = [{"task": name, **row} for name, some in tables.parts(samples) for row in _rows(some)]
    note = (
        "Right: the share of samples with a score of at least "
        f"{RIGHT:.0f}, in percent, with Wilson's 95% interval. Only selected right, only this right: the "
        "samples on which the selected answer and that of the row differ, which p tests. "
        f"{tables.BY_QUESTION}"
    )
    return Table("right", "Right answers", pd.DataFrame(rows), note, _STYLE)


def _rows(samples: pd.DataFrame) -> Iterator[dict[str, Any]]:
    scores = samples.assign(micro=tables.micro_scores(samples))
    selected, groups = scores["selected"] >= RIGHT, by_question.questions(samples)
    for way in WAYS:
        right = scores[way] >= RIGHT
        low, high = by_question.share_interval(right, groups)
        row: dict[str, Any] = {
            "answers": way,
            "samples": len(right),
            "questions": by_question.count(samples),
            "right": 100 * right.mean(),
            "low": low,
            "high": high,
        }
        if way in ("macro", "micro"):
            row["only selected right"] = int((selected & ~right).sum())
            row["only this right"] = int((right & ~selected).sum())
            row["p"] = by_question.p_value(selected, right, groups)
        yield row
