"""`dualfocus calibrate`: from finished runs to the file of a selection rule, and a table of what it is worth.

dualfocus calibrate runs/validation --out b.json
dualfocus eval --model_args pretrained=CHECKPOINT,select=calibrated:b.json ...
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.calibrated import (
    FEATURES,
    FORMAT,
    PREFIX,
    VERSION,
    Bias,
    CalibratedRule,
    Case,
    FittedOn,
    Logistic,
)
from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.files import save_text, writable
from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.results.calibration import fit
from dualfocus_lmms.results.outcomes import outcomes
from dualfocus_lmms.results.report import by_question
from dualfocus_lmms.results.report.tables import BY_QUESTION, RIGHT, SIGNED, Table, micro_scores, parts
from dualfocus_lmms.results.runs import Run, load_run
from dualfocus_lmms.results.trace_columns import TraceColumns
from dualfocus_lmms.trace import Trace

RuleName = Literal["bias", "logistic"]
FITS: dict[str, fit.Fit] = {"bias": fit.fit_bias, "logistic": fit.fit_logistic}


@dataclass(frozen=True)
class Calibration:
    """A fitted rule. table: what it is worth. text: the same and what to do with it, for a reader."""

    rule: CalibratedRule
    table: Table
    text: str


def calibrate(
    runs: Sequence[str | Path],
    out: str | Path,
    rule: str = "bias",
    folds: int = fit.FOLDS,
    traces: str | Path | None = None,
) -> Calibration:
    """Fit a rule on finished runs and write its file.

    rule: "bias", one number, or "logistic", which is compared with it. folds: of the cross-validation.
    traces: of a single run, where they are not found by themselves. UserError where there is nothing to fit.
    """
    if rule not in get_args(RuleName):
        raise choose("rule", rule, get_args(RuleName))
    if folds < 2:
        raise UserError(f"--folds is a number of parts, 2 or more, got {folds}.")
    if traces is not None and len(runs) > 1:
        raise UserError(f"--traces goes with one run, {len(runs)} are given: leave it out.")
    writable(Path(out).parent, "--out")
    loaded = [load_run(path, traces, Cases) for path in runs]
    count_eos = _count_eos(loaded)
    found_samples = [part for run in loaded for part in _samples(run)]
    samples = pd.concat([table for table, _ in found_samples], ignore_index=True)
    answers = _answers(samples, np.concatenate([inputs for _, inputs in found_samples]))
    found = {name: _fitted(name, answers) for name in dict.fromkeys(("bias", rule))}
    table = _table(samples, answers, found, folds)
    fitted = CalibratedRule(found[rule], count_eos, _fitted_on(loaded))
    _write(out, fitted, table, loaded, folds)
    return Calibration(fitted, table, _text(out, fitted, table))


# --- the runs ----------------------------------------------------------------------------------------------


class Cases(TraceColumns):
    """`TraceColumns`, and what a rule sees of each trace, see `fit.Answers.inputs`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.count_eos = bool(settings.get("count_eos", False))
        self._inputs = array("d")

    def add(self, trace: Trace) -> None:
        box = None if trace.box is None else Box(*trace.box)
        case = None if trace.micro is None else Case(trace.macro, trace.micro, box, self.count_eos)
        inputs = array("d", fit.inputs_of(case))
        super().add(trace)
        self._inputs += inputs

    def inputs(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(rows, features)."""
        return np.frombuffer(self._inputs, float).reshape(-1, len(FEATURES))[rows]


def _count_eos(runs: Sequence[Run]) -> bool:
    """What the runs have in common. UserError where they differ."""
    found = {bool(run.settings.get("count_eos", False)) for run in runs}
    if len(found) > 1:
        raise UserError(
            "Some of the runs have count_eos=True and some False: their perplexities do not compare. Give "
            "runs with the same setting."
        )
    return found.pop()


def _samples(run: Run) -> Iterator[tuple[pd.DataFrame, NDArray[np.float64]]]:
    """The columns that are counted of each task's outcomes, and what a rule sees: `fit.inputs_of`."""
    if not run.tasks:
        raise UserError(f"The run {run.name} has no traces: run it with --model_args trace=FOLDER.")
    for name, task in run.tasks.items():
        if FINGERPRINT not in task.data:
            raise UserError(
                f"The run {run.name} has not ended, so it is unknown which questions of {name} it "
                "asked. Finish it with resume=True."
            )
        table = outcomes(task).table[["question_key", "macro", "micro", "oracle"]]
        assert isinstance(task.columns, Cases)
        yield table.assign(task=name), task.columns.inputs(task.traces.rows)


def _answers(samples: pd.DataFrame, inputs: NDArray[np.float64]) -> fit.Answers:
    return fit.Answers(
        inputs,
        samples["macro"].to_numpy(dtype=float),
        micro_scores(samples).to_numpy(dtype=float),
        by_question.questions(samples),
    )


def _fitted_on(runs: Sequence[Run]) -> tuple[FittedOn, ...]:
    """Every set of questions once."""
    found: dict[tuple[str, str, str], int] = {}
    for run in runs:
        for task in run.tasks.values():
            key = (task.task, task.split, str(task.data[FINGERPRINT]))
            found[key] = max(found.get(key, 0), len(task.traces))
    return tuple(FittedOn(*key, samples) for key, samples in sorted(found.items()))


# --- the rule ----------------------------------------------------------------------------------------------


def _fitted(name: str, answers: fit.Answers) -> Bias | Logistic:
    """A rule fitted on all answers. UserError where they tell nothing."""
    found = FITS[name](answers, np.ones(len(answers.inputs), dtype=bool))
    if found is not None:
        return found
    looked = int((~np.isnan(answers.advantage)).sum())
    better = int((answers.gains > 0).sum()), int((answers.gains < 0).sum())
    raise UserError(
        f"Nothing to fit {name} on: of {len(answers.inputs)} samples, {looked} have a micro answer, which is "
        f"worth more than macro's in {better[0]} and less in {better[1]}. Give a run with pathway=both and "
        "more questions."
    )


def _table(
    samples: pd.DataFrame,
    answers: fit.Answers,
    found: Mapping[str, Bias | Logistic],
    folds: int,
) -> Table:
    plain = fit.scores(answers, Bias(0.0))
    rows = []
    for name, choice in found.items():
        held_out = fit.held_out_scores(FITS[name], answers, folds)
        scored = samples.assign(
            plain=plain,
            fitted=fit.scores(answers, choice),
            held_out=np.nan if held_out is None else held_out,
        )
        numbers = {"b": math.nan, "b, low": math.nan, "b, high": math.nan}
        if isinstance(choice, Bias):
            numbers = {"b": choice.b} | dict(zip(("b, low", "b, high"), fit.b_interval(answers), strict=True))
        for part, some in parts(scored):
            rows.append({"rule": name, "questions of": part, **_row(some), **numbers})
    note = (
        f"Scores in percent. Cross-validated: each sample by the rule fitted on the other folds ({folds} in "
        "all); all samples of a question are in one fold. Gain: cross-validated - b = 0, with its 95% "
        f"interval. The interval of b is that of 1,000 draws of questions. {BY_QUESTION}"
    )
    style = {"p": "{:.2g}"} | SIGNED | dict.fromkeys(("b", "b, low", "b, high"), "{:+.3f}")
    return Table("calibration", "Calibration", pd.DataFrame(rows), note, style)


def _row(samples: pd.DataFrame) -> dict[str, Any]:
    groups = by_question.questions(samples)
    plain, held_out = samples["plain"], samples["held_out"]
    known = bool(held_out.notna().all())
    low, high = by_question.interval(held_out, plain, groups) if known else (math.nan, math.nan)
    p = by_question.p_value(held_out >= RIGHT, plain >= RIGHT, groups) if known else math.nan
    return {
        "n": len(samples),
        "choice matters": int((samples["macro"] != micro_scores(samples)).sum()),
        "b = 0": plain.mean(),
        "fitted": samples["fitted"].mean(),
        "cross-validated": held_out.mean(),
        "oracle": samples["oracle"].mean(),
        "gain": (held_out - plain).mean(),
        "gain, low": low,
        "gain, high": high,
        "p": p,
    }


# --- the file ----------------------------------------------------------------------------------------------


def _write(out: str | Path, rule: CalibratedRule, table: Table, runs: Sequence[Run], folds: int) -> None:
    figures = [
        {name: None if value != value else value for name, value in row.items()}
        for row in table.frame.to_dict("records")
    ]
    data = {
        "format": FORMAT,
        "version": VERSION,
        **rule.to_dict(),
        "runs": [{"run": run.name, "settings": run.settings} for run in runs],
        "folds": folds,
        "seed": fit.SEED,
        "figures": figures,
    }
    save_text(out, json.dumps(data, indent=1, allow_nan=False) + "\n", "calibration")


def _text(out: str | Path, rule: CalibratedRule, table: Table) -> str:
    """The table and what to do with it."""
    kind = "bias" if isinstance(rule.choice, Bias) else "logistic"
    row = table.frame[table.frame["rule"] == kind].iloc[-1]
    lines = [table.markdown(), "", table.note, ""]
    if math.isnan(row["cross-validated"]):
        lines.append(
            "No cross-validation: a fold leaves too few questions to fit on. What the rule is worth is not "
            "known."
        )
    elif not row["gain, low"] > 0:
        lines.append("The interval of the gain over b = 0 does not lie above 0: eq. 8 may be as good.")
    if isinstance(rule.choice, Bias):
        lines.append(f"Macro wins where ln PPL(macro) < ln PPL(micro) {rule.choice.b:+.4f}.")
    lines.append(f"{out}: give it with select={PREFIX}{out}, on other questions than these.")
    return "\n".join(lines)
