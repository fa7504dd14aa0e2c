"""Several runs beside each other: base and tuned, or boxes moved by more and more (tables 3 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dualfocus_lmms.results.report import by_question, tables
from dualfocus_lmms.results.report.tables import Table


def by_run(runs: Mapping[str, pd.DataFrame], settings: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a run: the settings in which they differ, its scores, and how it differs from the first run on
    the samples of both (tables 3 and 5)."""
    differing = [
        name
        for name in sorted({name for some in settings.values() for name in some})
        if len({str(some.get(name)) for some in settings.values()}) > 1
    ]
    first = next(iter(runs.values()))
    rows = [
        {"run": name}
        | {setting: str(settings[name].get(setting, "-")) for setting in differing}
        | {"samples": len(samples), "questions": by_question.count(samples)}
        | {"macro": samples["macro"].mean(), "micro": tables.micro_scores(samples).mean()}
        | {"selected": samples["selected"].mean(), "oracle": samples["oracle"].mean()}
        | (against(samples, first) if place else {})
        for place, (name, samples) in enumerate(runs.items())
    ]
    note = (
        "Difference: selected here - selected in the first run, on the samples of both, with its 95% "
        f"interval from paired bootstrap. {tables.BY_QUESTION}"
    )
    style = {"p": "{:.2g}", "in both": "{:.0f}"} | tables.SIGNED
    return Table("comparison", "Runs", pd.DataFrame(rows), note, style)


def against(samples: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """By how much the selected answers of one run are better than another's, on the samples of both."""
    names = ["task", "doc_id"]
    pairs = samples[[*names, "question_key", "selected"]].merge(
        other[[*names, "selected"]], on=names, suffixes=("", "_other")
    )
    if pairs.empty:
        return {"in both": 0}
    one, two = pairs["selected"], pairs["selected_other"]
    groups = by_question.questions(pairs)
    low, high = by_question.interval(one, two, groups)
    p = by_question.p_value(one >= tables.RIGHT, two >= tables.RIGHT, groups)
    return {"in both": len(pairs), "difference": (one - two).mean(), "low": low, "high": high, "p": p}


def by_task(runs: Mapping[str, pd.DataFrame]) -> Table:
    """One row a run and pathway, one column a task, as the paper prints its tables."""
    rows = [
        {"run": name, "answers": way}
        | {
            task: (tables.micro_scores(some) if way == "micro" else some[way]).mean()
            for task, some in tables.parts(samples)
        }
        for name, samples in runs.items()
        for way in ("macro", "micro", "selected")
    ]
    frame = pd.DataFrame(rows)
    if tables.ALL in frame:  # last, whichever run has several tasks
        frame[tables.ALL] = frame.pop(tables.ALL)
    return Table("comparison_by_task", "Runs by task", frame)


def differences(runs: Mapping[str, pd.DataFrame]) -> Table:
    """One row a task and run after the first: the paired difference from the first run, see `by_run`."""
    (_, first), *others = runs.items()
    rows = [
        {"task": task, "run": name} | against(some, first)
        for name, samples in others
        for task, some in tables.parts(samples)
    ]
    style = {"p": "{:.2g}", "in both": "{:.0f}"} | tables.SIGNED
    return Table("comparison_paired", "Differences from the first run by task", pd.DataFrame(rows), "", style)
