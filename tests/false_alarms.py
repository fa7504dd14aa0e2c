"""How often the gate fails where nothing got worse, and how often it notices a drop, by simulation.

python tests/false_alarms.py [CHECKS]    # the table of docs/ci.md; 2,000 checks a row take minutes
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from dualfocus_lmms.results.baseline import Figure, TaskScores
from dualfocus_lmms.results.gate.check import compare
from dualfocus_lmms.tasks.common.uncertainty import mean_error

CHECKS = 2000
RIGHT = 0.6  # the share of correct answers
GRADES = np.array([0.0, 30.0, 60.0, 90.0, 100.0])  # of VQA accuracy

Scores = NDArray[np.float64]
Runs = Callable[[np.random.Generator, "Case"], tuple[Scores, Scores]]


def rerun(random: np.random.Generator, case: Case) -> tuple[Scores, Scores]:
    """Scores of the baseline's answers and of now: `changed` of them differ, `drop` more of them lost."""
    before = random.random(case.n) < RIGHT
    now = before.copy()
    place = random.random(case.n)
    lost, gained = (case.changed + case.drop) / 2, (case.changed - case.drop) / 2
    is_lost, is_gained = place < lost, (place >= lost) & (place < lost + gained)
    before[is_lost], now[is_lost] = True, False
    before[is_gained], now[is_gained] = False, True
    return 100.0 * before, 100.0 * now


def graded(random: np.random.Generator, case: Case) -> tuple[Scores, Scores]:
    """Scores in between too; an answer that changes has any of them, then and now."""
    before = random.choice(GRADES, case.n)
    now = np.where(random.random(case.n) < case.changed, random.choice(GRADES, case.n), before)
    return before, now


def apart(random: np.random.Generator, case: Case) -> tuple[Scores, Scores]:
    """Answers to other questions, or all of them drawn anew; `drop` fewer are correct now."""
    before, now = random.random(case.n) < RIGHT, random.random(case.n) < RIGHT - case.drop
    return 100.0 * before, 100.0 * now


@dataclass(frozen=True)
class Case:
    """Checks of one kind. n: answers a task. changed: the share that differ. drop: true, in the first task.

    paired: whether the score of every answer is known on both sides. most, least: of the checks that fail.
    """

    n: int
    changed: float
    tasks: int = 1
    drop: float = 0.0
    runs: Runs = field(default=rerun)
    paired: bool = True

    @property
    def what(self) -> str:
        """In the words of the table."""
        if not self.paired:
            return "standard errors alone"
        return "scores in between" if self.runs is graded else "correct or wrong"


NOTHING_WORSE = [
    *(Case(n, changed) for n in (100, 300, 1000, 5000) for changed in (0.01, 0.05, 0.2)),
    Case(30, 0.5),
    Case(1000, 0.5),
    *(Case(1000, 0.1, tasks) for tasks in (10, 30)),
    *(Case(n, 0.1, runs=graded) for n in (20, 300)),
    Case(300, 0.1, 10, runs=graded),
    *(Case(n, 1.0, runs=apart, paired=False) for n in (2, 5, 20, 300)),
    Case(300, 1.0, 10, runs=apart, paired=False),
]
WORSE = [
    *(Case(1000, changed, drop=0.03) for changed in (0.03, 0.05, 0.1, 0.2, 0.3)),
    *(Case(1000, 0.05, tasks, drop=0.03) for tasks in (10, 30)),
    *(Case(1000, changed, drop=0.01) for changed in (0.01, 0.05)),
    Case(300, 0.05, drop=0.03),
    Case(1000, 1.0, drop=0.03, runs=apart, paired=False),
]


def failing(case: Case, checks: int, seed: int = 0) -> float:
    """The share of checks at the gate's defaults that fail."""
    random = np.random.default_rng(seed)
    return sum(_fails(case, random) for _ in range(checks)) / checks


def _fails(case: Case, random: np.random.Generator) -> bool:
    """Of one check. A true drop must be found in the first task, where it is."""
    before, now = {}, {}
    for number in range(case.tasks):
        one = case if number == 0 else Case(case.n, case.changed, runs=case.runs)
        then, this = case.runs(random, one)
        before[str(number)], now[str(number)] = (_task(scores, case.paired) for scores in (then, this))
    checked = compare(before, now)[: 1 if case.drop else None]
    return any(item.failure for task in checked for item in task.comparisons)


def _task(scores: Scores, paired: bool) -> TaskScores:
    figures = {"accuracy": Figure(float(scores.mean()), mean_error(scores), True)}
    return TaskScores(figures, len(scores), plain=paired, scores=scores.tolist() if paired else [])


def table(checks: int = CHECKS) -> str:
    """Every case and the share of its checks that fail, as Markdown."""
    rows = [
        [
            case.what,
            f"{case.n:,}",
            f"{100 * case.changed:g}%",
            case.tasks,
            f"{100 * case.drop:g}" if case.drop else "none",
            f"{100 * failing(case, checks):.1f}%",
        ]
        for case in (*NOTHING_WORSE, *WORSE)
    ]
    headers = ["scores", "answers", "differ", "tasks", "true drop", "checks that fail"]
    aligned = ("left", *["right"] * 5)
    return tabulate(rows, headers, tablefmt="github", colalign=aligned, disable_numparse=True)


if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else CHECKS))
