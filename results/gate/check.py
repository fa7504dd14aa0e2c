"""The gate: did anything get worse since the baseline? `dualfocus check` in a line of CI.

    dualfocus check results/today --baseline results/baseline.json --summary summary.md

A metric fails by a drop that is significant, or larger than the bound. Where both sides have the score of
every answer, they are compared in pairs; else by their standard errors, as if they were independent, which
misses more. A task fails when it is missing, lacks samples, or has other questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import erfc, sqrt
from pathlib import Path

import numpy as np

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.results.baseline import Baseline, Figure, TaskScores
from dualfocus_lmms.results.runs import Run, TaskRun, trace_argument
from dualfocus_lmms.tasks.common.uncertainty import mcnemar, paired_bootstrap_error

FLIPS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric, then and now, in the metric's unit.

    gain: how much better it is now, below 0 where it is worse. p: two-sided; None without a test.
    test: how p was found. failure: why it fails, None where it passes.
    """

    metric: str
    before: float
    now: float
    gain: float
    p: float | None
    test: str
    failure: str | None


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample whose score changed. question, target and answer (of now) as the host logged them."""

    doc_id: int
    before: float
    now: float
    question: str
    target: str
    answer: str


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """One task, then and now. failures: of the task as a whole. lost, gained: how many answers score less,
    or more, than they did; flips: the first of each."""

    task: str
    failures: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    lost: int = 0
    gained: int = 0
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """A run against a baseline. failures: of the run as a whole. new: tasks that the baseline lacks."""

    run: str
    baseline: str
    max_drop: float
    alpha: float
    failures: tuple[str, ...]
    tasks: tuple[TaskCheck, ...]
    new: tuple[str, ...] = field(default=())

    @property
    def all_failures(self) -> list[str]:
        """Every reason why the check fails, each with its task; empty when it passes."""
        found = list(self.failures)
        for task in self.tasks:
            failed = (f"{item.metric} {item.failure}" for item in task.comparisons if item.failure)
            found += [f"{task.task}: {reason}" for reason in (*task.failures, *failed)]
        return found


def check(run: Run, baseline: Baseline, max_drop: float = 1.0, alpha: float = 0.05) -> Check:
    """Compare a run with a baseline.

    max_drop: in the metrics' unit, percentage points for ours. alpha: a drop is significant where p is below
    it; 0 leaves the bound alone. UserError for impossible values.
    """
    if not 0 <= alpha < 1 or not max_drop >= 0:
        raise UserError(f"max_drop is 0 or more and alpha 0 to below 1, got {max_drop} and {alpha}.")
    now = Baseline.of(run)
    tasks = [
        _check_task(name, before, now.tasks.get(name), run.tasks.get(name), max_drop, alpha)
        for name, before in baseline.tasks.items()
    ]
    return Check(
        run=run.name,
        baseline=baseline.name,
        max_drop=max_drop,
        alpha=alpha,
        failures=tuple(incomplete(run)),
        tasks=tuple(tasks),
        new=tuple(name for name in now.tasks if name not in baseline.tasks),
    )


def update(run: Run, path: str | Path) -> str:
    """Make a run the new baseline; a sentence about it. UserError for a run that is not complete."""
    if lacking := incomplete(run):
        raise UserError(f"{' '.join(lacking)} Finish {run.name} before it becomes a baseline.")
    new = Baseline.of(run)
    new.save(path)
    return f"{path}: the baseline is now {new.name} of {new.date}, with {', '.join(new.tasks)}."


def incomplete(run: Run) -> list[str]:
    """What a run lacks by its own account, one sentence each."""
    if run.results is None:
        return ["The run did not end: it has no results."]
    found = []
    named = trace_argument(run.results)
    if named is not None and not any(task.samples for task in run.tasks.values()):
        found.append(f"Its traces are not here, its results name {named}: give their folder with --traces.")
    for name, task in run.tasks.items():
        for what, count in _present(task):
            if task.expected is not None and count < task.expected:
                found.append(f"{name} has {count} {what} of {task.expected} samples: some are missing.")
    return found


def _check_task(
    name: str, before: TaskScores, now: TaskScores | None, run: TaskRun | None, max_drop: float, alpha: float
) -> TaskCheck:
    if now is None:
        return TaskCheck(name, ("The task is gone: the run did not ask it.",))
    failures = (*_missing(before, now), *_changed_data(before, now))
    comparisons = [
        _compare(metric, figure, before, now, max_drop, alpha) for metric, figure in before.metrics.items()
    ]
    lost = [key for key, (then, this) in _pairs(before, now).items() if this < then]
    gained = [key for key, (then, this) in _pairs(before, now).items() if this > then]
    shown = {*lost[:FLIPS_SHOWN], *gained[:FLIPS_SHOWN]}
    return TaskCheck(
        task=name,
        failures=failures,
        comparisons=tuple(item for item in comparisons if item is not None),
        lost=len(lost),
        gained=len(gained),
        flips=tuple(_flips(run, shown, before, now)) if run is not None and shown else (),
    )


def _present(task: TaskRun) -> Iterator[tuple[str, int]]:
    """(what, how many) for each record of a run that exists."""
    if task.samples:
        yield "traces", len(task.samples)
    if task.samples_file is not None:
        yield "logged samples", len({row["doc_id"] for row in task.rows()})


def _missing(before: TaskScores, now: TaskScores) -> Iterator[str]:
    if before.samples is not None and (now.samples or 0) < before.samples:
        yield f"{before.samples - (now.samples or 0)} of the baseline's {before.samples} samples are missing."


def _changed_data(before: TaskScores, now: TaskScores) -> Iterator[str]:
    for name, fingerprint in before.data.items():
        if name not in now.data:
            yield f"The run has no fingerprint of its {name}: give its traces, or write the baseline anew."
        elif now.data[name] != fingerprint:
            yield f"Other data: the fingerprint {name} was {fingerprint}, now {now.data[name]}."


# --- one metric --------------------------------------------------------------------------------------------


def _compare(
    metric: str, figure: Figure, before: TaskScores, now: TaskScores, max_drop: float, alpha: float
) -> Comparison | None:
    """None where more is neither better nor worse."""
    if figure.higher_is_better is None:
        return None
    current = now.metrics.get(metric)
    if current is None:
        nothing = float("nan")
        return Comparison(metric, figure.value, nothing, nothing, None, "none", "is gone.")
    gain = (current.value - figure.value) * (1 if figure.higher_is_better else -1)
    p, test = _significance(metric, figure, current, before, now)
    failure = None
    if gain < 0 and p is not None and p < alpha:
        failure = f"dropped by {-gain:.2f}, which is significant (p = {p:.2g}, {test})."
    elif -gain > max_drop + 1e-9:  # floats
        failure = f"dropped by {-gain:.2f}, more than {max_drop:g}."
    return Comparison(metric, figure.value, current.value, gain, p, test, failure)


def _significance(
    metric: str, figure: Figure, current: Figure, before: TaskScores, now: TaskScores
) -> tuple[float | None, str]:
    """(p, test) of a difference, two-sided."""
    pairs = list(_pairs(before, now).values()) if metric == before.metric == now.metric else []
    if before.plain and now.plain and len(pairs) == before.samples == now.samples:
        return _paired(pairs)
    if figure.error is None or current.error is None:
        return None, "none"
    return _two_sided(current.value - figure.value, sqrt(figure.error**2 + current.error**2)), "z"


def _paired(pairs: Sequence[tuple[float, float]]) -> tuple[float, str]:
    then, this = np.array(pairs, dtype=float).T
    if {*then, *this} <= {0.0, 100.0}:
        return mcnemar(list(this > 0), list(then > 0)), "McNemar"
    if np.array_equal(then, this):
        return 1.0, "paired bootstrap"
    error = paired_bootstrap_error(this, then, lambda means: means[:, 0])
    return _two_sided(float((this - then).mean()), error), "paired bootstrap"


def _two_sided(difference: float, error: float) -> float:
    """How likely a difference at least this large is if there is none, by the normal distribution."""
    if error > 0:
        return erfc(abs(difference) / error / sqrt(2))
    return 1.0 if difference == 0 else 0.0


# --- the answers -------------------------------------------------------------------------------------------


def _pairs(before: TaskScores, now: TaskScores) -> dict[int, tuple[float, float]]:
    """(then, now) of every sample that has both scores, by doc_id."""
    both = zip(before.scores, now.scores, strict=False)  # the shorter one ends it
    return {
        key: (then, this) for key, (then, this) in enumerate(both) if then is not None and this is not None
    }


def _flips(run: TaskRun, shown: set[int], before: TaskScores, now: TaskScores) -> Iterator[Flip]:
    pairs = _pairs(before, now)
    rows = {row["doc_id"]: row for row in run.rows() if row["doc_id"] in shown}
    for key, row in sorted(rows.items()):
        yield Flip(
            doc_id=key,
            before=pairs[key][0],
            now=pairs[key][1],
            question=str(row.get("input", "")),
            target=str(row.get("target", "")),
            answer=_answer(row.get("filtered_resps", "")),
        )


def _answer(replies: str | Sequence[str]) -> str:
    return replies if isinstance(replies, str) else ", ".join(map(str, replies))
