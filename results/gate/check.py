"""The gate: did anything get worse since the baseline? `dualfocus check` in a line of CI.

    dualfocus check results/today --baseline results/baseline.json --summary summary.md

A metric fails by a drop that is significant, corrected for the number of metrics that are tested, and where a
bound is given by one that is larger. A task fails when it is missing, lacks samples, or has other questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.results.baseline import Baseline, Figure, TaskScores
from dualfocus_lmms.results.gate.significance import pairs, significance
from dualfocus_lmms.results.runs import Run, TaskRun, trace_argument
from dualfocus_lmms.tasks.common.uncertainty import holm

FLIPS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric, then and now, in the metric's unit.

    gain: how much better it is now, below 0 where it is worse. p: two-sided; None without a test.
    test: how p was found. corrected: p for the number of tests in the check, by Holm's method. failure: why
    it fails, None where it passes. decided: what it fails by.
    """

    metric: str
    before: float
    now: float
    gain: float
    p: float | None
    test: str
    corrected: float | None = None
    failure: str | None = None
    decided: Literal["p", "bound", "gone"] | None = None


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
    """A run against a baseline. max_drop: None without a bound. failures: of the run as a whole. new: tasks
    that the baseline lacks."""

    run: str
    baseline: str
    max_drop: float | None
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


def check(run: Run, baseline: Baseline, max_drop: float | None = None, alpha: float = 0.05) -> Check:
    """Compare a run with a baseline.

    max_drop: in the metrics' unit, percentage points for ours; a larger drop fails, significant or not. None
    leaves it to the tests. alpha: the most that checks of what is as good as before may fail by chance, over
    all of their metrics; 0 leaves it to max_drop. UserError for impossible values.
    """
    if not 0 <= alpha < 1 or (max_drop is not None and not max_drop >= 0):
        raise UserError(f"max_drop is 0 or more and alpha 0 to below 1, got {max_drop} and {alpha}.")
    if alpha == 0 and max_drop is None:
        raise UserError("With alpha 0 and no max_drop no drop would fail: give one of them.")
    now = Baseline.of(run)
    tasks = compare(baseline.tasks, now.tasks, max_drop, alpha)
    return Check(
        run=run.name,
        baseline=baseline.name,
        max_drop=max_drop,
        alpha=alpha,
        failures=tuple(incomplete(run)),
        tasks=tuple(
            _with_flips(task, run.tasks[task.task], baseline.tasks[task.task], now.tasks[task.task])
            if task.task in run.tasks
            else task
            for task in tasks
        ),
        new=tuple(name for name in now.tasks if name not in baseline.tasks),
    )


def compare(
    before: Mapping[str, TaskScores],
    now: Mapping[str, TaskScores],
    max_drop: float | None = None,
    alpha: float = 0.05,
) -> list[TaskCheck]:
    """Every task of `before` as it was and as it is now, without flips. max_drop, alpha: see `check`."""
    tasks = [_check_task(name, scores, now.get(name)) for name, scores in before.items()]
    p_values = [item.p for task in tasks for item in task.comparisons if item.p is not None]
    corrected = iter(holm(p_values))
    return [
        replace(
            task,
            comparisons=tuple(
                _judged(
                    item if item.p is None else replace(item, corrected=next(corrected)),
                    max_drop,
                    alpha,
                    len(p_values),
                )
                for item in task.comparisons
            ),
        )
        for task in tasks
    ]


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


def _check_task(name: str, before: TaskScores, now: TaskScores | None) -> TaskCheck:
    if now is None:
        return TaskCheck(name, ("The task is gone: the run did not ask it.",))
    comparisons = [_compare(metric, figure, before, now) for metric, figure in before.metrics.items()]
    return TaskCheck(
        task=name,
        failures=(*_missing(before, now), *_changed_data(before, now)),
        comparisons=tuple(item for item in comparisons if item is not None),
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
            yield f"The run has no fingerprint of its {name}: give its traces, or write a new baseline."
        elif now.data[name] != fingerprint:
            yield f"Other data: the fingerprint {name} was {fingerprint}, now {now.data[name]}."


# --- one metric --------------------------------------------------------------------------------------------


def _compare(metric: str, figure: Figure, before: TaskScores, now: TaskScores) -> Comparison | None:
    """Not judged yet. None where more is neither better nor worse."""
    if figure.higher_is_better is None:
        return None
    current = now.metrics.get(metric)
    if current is None:
        nothing = float("nan")
        return Comparison(metric, figure.value, nothing, nothing, None, "none", None, "is gone.", "gone")
    gain = (current.value - figure.value) * (1 if figure.higher_is_better else -1)
    p, test = significance(metric, before, now)
    return Comparison(metric, figure.value, current.value, gain, p, test)


def _judged(item: Comparison, max_drop: float | None, alpha: float, tests: int) -> Comparison:
    """With the reason why it fails, if it does. tests: how many there are in the check."""
    if item.gain < 0 and item.p is not None and item.corrected is not None and item.corrected < alpha:
        why = f"p = {item.p:.2g}, {item.test}"
        why += f"; {item.corrected:.2g} among {tests} tests" if tests > 1 else ""
        return replace(
            item, failure=f"dropped by {-item.gain:.2f}, which is significant ({why}).", decided="p"
        )
    if max_drop is not None and -item.gain > max_drop + 1e-9:  # floats
        return replace(item, failure=f"dropped by {-item.gain:.2f}, more than {max_drop:g}.", decided="bound")
    return item


# --- the answers -------------------------------------------------------------------------------------------


def _with_flips(check: TaskCheck, run: TaskRun, before: TaskScores, now: TaskScores) -> TaskCheck:
    both = pairs(before, now)
    lost = [key for key, (then, this) in both.items() if this < then]
    gained = [key for key, (then, this) in both.items() if this > then]
    shown = {*lost[:FLIPS_SHOWN], *gained[:FLIPS_SHOWN]}
    flips = tuple(_flips(run, shown, both)) if shown else ()
    return replace(check, lost=len(lost), gained=len(gained), flips=flips)


def _flips(run: TaskRun, shown: set[int], both: Mapping[int, tuple[float, float]]) -> Iterator[Flip]:
    rows = {row["doc_id"]: row for row in run.rows() if row["doc_id"] in shown}
    for key, row in sorted(rows.items()):
        yield Flip(
            doc_id=key,
            before=both[key][0],
            now=both[key][1],
            question=str(row.get("input", "")),
            target=str(row.get("target", "")),
            answer=_answer(row.get("filtered_resps", "")),
        )


def _answer(replies: str | Sequence[str]) -> str:
    return replies if isinstance(replies, str) else ", ".join(map(str, replies))
