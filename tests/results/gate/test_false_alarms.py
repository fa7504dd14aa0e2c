"""The gate at its defaults: few false alarms whatever is compared, and true drops are found."""

from __future__ import annotations

from pathlib import Path

import false_alarms
import pytest
from false_alarms import Case

pytestmark = pytest.mark.seconds(20)

CHECKS = 150
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "case",
    [
        Case(100, 0.1),
        Case(300, 0.05),
        Case(1000, 0.2),
        Case(300, 0.1, tasks=10),
        Case(20, 0.2, runs=false_alarms.graded),
        Case(2, 1.0, runs=false_alarms.apart, paired=False),
        Case(5, 1.0, runs=false_alarms.apart, paired=False),
    ],
    ids=lambda case: f"{case.n}-{case.changed}-{case.tasks}-{case.what}",
)
def test_a_run_that_is_as_good_as_before_passes(case: Case) -> None:
    """The true rate is half of 5% at most: 12 of 150 is beyond chance."""
    assert false_alarms.failing(case, CHECKS) < 12 / CHECKS


@pytest.mark.parametrize("tasks", [1, 10])
def test_a_drop_of_three_points_among_a_thousand_answers_is_found(tasks: int) -> None:
    assert false_alarms.failing(Case(1000, 0.05, tasks, drop=0.03), 40) >= 0.9


def test_the_documentation_has_a_row_for_every_case() -> None:
    """And no false alarms above 5% among those where nothing is worse."""
    lines = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.count("|") == 7]
    printed = [row for row in rows if row[5].endswith("%")]
    assert len(printed) == len(false_alarms.NOTHING_WORSE) + len(false_alarms.WORSE)
    assert [row[:3] for row in printed] == [
        [case.what, f"{case.n:,}", f"{100 * case.changed:g}%"]
        for case in (*false_alarms.NOTHING_WORSE, *false_alarms.WORSE)
    ]
    assert all(float(row[5].rstrip("%")) <= 5 for row in printed if row[4] == "none")
