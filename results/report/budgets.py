"""Accuracy against tokens: runs of the same questions and model that differ in their budget alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from dualfocus_lmms.results.report.tables import STAGES, Table

# Settings that decide how many tokens a question may take.
BUDGETS = ("min_pixels", "max_pixels", "crop_pixels", "pathway", "skip_confidence")
MACRO, BOTH = "macro only", "DualFocus"


def by_budget(runs: Mapping[str, pd.DataFrame], settings: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a run and line, "macro only" and "DualFocus", by tokens: the mean tokens of a question, and the
    mean score, on the samples that every run has.

    Empty unless the runs differ in settings of BUDGETS and in no other, and in their mean tokens. runs,
    settings: by the run's name. A run of pathway=macro has no DualFocus row.
    """
    differing = [
        name
        for name in sorted({name for some in settings.values() for name in some})
        if len({str(some.get(name)) for some in settings.values()}) > 1
    ]
    rows: list[dict[str, Any]] = []
    if differing and set(differing) <= set(BUDGETS):
        for name, samples in _shared(runs).items():
            budget = {setting: str(settings[name].get(setting, "-")) for setting in differing}
            tokens = samples[[f"tokens_{stage}" for stage in STAGES]].fillna(0)
            lines = [(MACRO, tokens["tokens_macro"], samples["macro"])]
            if settings[name].get("pathway") != "macro":
                lines.append((BOTH, tokens.sum(axis=1), samples["selected"]))
            rows += [
                {"answers": line, "run": name}
                | budget
                | {"samples": len(samples), "tokens per question": spent.mean(), "score": scores.mean()}
                for line, spent, scores in lines
                if len(samples)
            ]
    frame = pd.DataFrame(rows)
    if len(frame):
        by_run = frame.groupby("run")["tokens per question"].max()  # a run's own: both looks where it has two
        if by_run.round(1).nunique() < 2:
            frame = frame.iloc[:0]
        frame = frame.sort_values(["answers", "tokens per question"], ascending=[False, True], kind="stable")
    note = (
        "Tokens: of images and text, those that the language model computed for a question in all stages, "
        "the mean; those that a prefix shared with another stage or question saved do not count. Score: the "
        "mean, on the samples that all runs have. macro only: the first look of each run by itself."
    )
    return Table("budgets", "Accuracy against tokens", frame, note, {"tokens per question": "{:,.1f}"})


def _shared(runs: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The samples of each run that every run has."""
    keys = {name: pd.MultiIndex.from_frame(samples[["task", "doc_id"]]) for name, samples in runs.items()}
    return {
        name: samples[np.logical_and.reduce([keys[name].isin(other) for other in keys.values()])]
        for name, samples in runs.items()
    }
