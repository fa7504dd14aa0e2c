"""A run's figures as tables: pure functions from samples to numbers. Knows no file, no page and no task.

samples: one row a sample, the columns of `outcomes.Outcomes.table` and its `costs`, with `task`
and `dimension` (None where a task has no kinds of questions). Where there was no second look, the macro
answer stands for micro. A question whose options are asked in several orders is several samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from tabulate import tabulate

from dualfocus_lmms.results.outcomes import Outcomes
from dualfocus_lmms.results.report import by_question
from dualfocus_lmms.text_output import markdown
from dualfocus_lmms.types import Fallback

RIGHT = 50.0  # the lowest score that counts as correct where correct and wrong are counted
WAYS = ("macro", "micro", "selected", "oracle")
STAGES = ("macro", "locate", "micro")
ALL = "all questions"
THRESHOLDS = (1.0, 0.999, 0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.0)


@dataclass(frozen=True)
class Table:
    """Figures with names for people.

    name: of its CSV file. formats: how a column's numbers are written, "{:.2f}" by default; texts
    are written as they are, missing values as a dash.
    """

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> list[str]:
        return [str(name) for name in self.frame.columns]

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [pd.api.types.is_numeric_dtype(self.frame[name]) for name in self.frame.columns]

    def cells(self) -> list[list[str]]:
        """The rows as texts."""
        columns = [[self._cell(name, value) for value in self.frame[name]] for name in self.frame.columns]
        return [list(row) for row in zip(*columns, strict=True)]

    def _cell(self, column: str, value: Any) -> str:
        if value is None or value != value:
            return "-"
        if isinstance(value, str):
            return value
        whole = "{:,}" if isinstance(value, (int, np.integer)) else "{:.2f}"
        return self.formats.get(column, whole).format(value)

    def markdown(self) -> str:
        aligned = ["right" if number else "left" for number in self.numeric]
        rows = [[markdown(cell) for cell in row] for row in self.cells()]
        headers = [markdown(name) for name in self.headers]
        return tabulate(rows, headers, tablefmt="github", colalign=aligned, disable_numparse=True)


def parts(samples: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each task with its samples; then all of them, where there are several tasks."""
    names = samples["task"].unique()
    if len(names) == 1:
        yield names[0], samples
        return
    for name in names:
        yield name, samples[samples["task"] == name]
    if len(names):
        yield ALL, samples


def micro_scores(samples: pd.DataFrame) -> pd.Series:
    """The micro answer's score, the macro answer's where there is none."""
    return samples["micro"].fillna(samples["macro"])


BY_QUESTION = (
    "Intervals and p are by question: one that is asked with its options in several orders is several "
    "samples, which are drawn and flipped together. p is two-sided; where each question is one sample, it is "
    "that of McNemar's exact test."
)


# --- the pathways ------------------------------------------------------------------------------------------


def ablation(samples: pd.DataFrame) -> Table:
    """Table 3 of the paper in a run's own figures, and what the choice between both answers did."""
    frame = pd.DataFrame([{"task": name, **_ablation_row(some)} for name, some in parts(samples)])
    note = (
        "Scores are means over samples, in percent; without a second look the macro answer stands for "
        "micro. Oracle: the better of both. Gain: selected - macro, with its 95% interval from paired "
        f"bootstrap. {BY_QUESTION} An answer is right with a score of at least "
        f"{RIGHT:.0f}. Contested: one pathway right, the other wrong; there, choice right is the share where "
        "the right one was chosen, and AUROC how well the difference of log-perplexities shows which one it "
        "is (50 is chance)."
    )
    return Table("ablation", "Pathways", frame, note, {"p": "{:.2g}"} | SIGNED)


SIGNED = dict.fromkeys(("gain", "gain, low", "gain, high", "difference", "low", "high"), "{:+.2f}")


def _ablation_row(samples: pd.DataFrame) -> dict[str, Any]:
    micro = micro_scores(samples)
    right = {way: samples[way] >= RIGHT for way in ("macro", "selected")} | {"micro": micro >= RIGHT}
    contested = samples[right["macro"] != right["micro"]]
    groups = by_question.questions(samples)
    low, high = by_question.interval(samples["selected"], samples["macro"], groups)
    return {
        "samples": len(samples),
        "questions": by_question.count(samples),
        "macro": samples["macro"].mean(),
        "micro": micro.mean(),
        "selected": samples["selected"].mean(),
        "oracle": samples["oracle"].mean(),
        "gain": (samples["selected"] - samples["macro"]).mean(),
        "gain, low": low,
        "gain, high": high,
        "wrong to right": int((~right["macro"] & right["selected"]).sum()),
        "right to wrong": int((right["macro"] & ~right["selected"]).sum()),
        "p": by_question.p_value(right["selected"], right["macro"], groups),
        "contested": len(contested),
        "choice right": 100 * (contested["selected"] >= RIGHT).mean(),
        "AUROC": auroc(contested["nll_macro"] - contested["nll_micro"], contested["micro"] >= RIGHT),
    }


def auroc(values: ArrayLike, positive: ArrayLike) -> float:
    """The area under the ROC curve, in percent; nan values are left out. nan without both classes."""
    from sklearn.metrics import roc_auc_score

    scores = np.asarray(values, dtype=float)
    known = ~np.isnan(scores)
    is_positive = np.asarray(positive, dtype=bool)[known]
    if is_positive.all() or not is_positive.any():
        return float("nan")
    return 100 * float(roc_auc_score(is_positive, scores[known]))


def dimensions(samples: pd.DataFrame) -> Table:
    """Figure 4: scores by the kind of question that a task's documents name; empty where there is but one."""
    rows = [
        {
            "task": task,
            "kind": kind,
            "samples": len(some),
            "macro": some["macro"].mean(),
            "micro": micro_scores(some).mean(),
            "selected": some["selected"].mean(),
            "gain": (some["selected"] - some["macro"]).mean(),
            "micro chosen": 100 * (some["pathway"] == "micro").mean(),
        }
        for (task, kind), some in samples[
            ["task", "dimension", "macro", "micro", "selected", "pathway"]
        ].groupby(["task", "dimension"], sort=False)
    ]
    return Table("kinds", "Kinds of questions", pd.DataFrame(rows if len(rows) > 1 else []), "", SIGNED)


# --- perplexities ------------------------------------------------------------------------------------------


def perplexities(samples: pd.DataFrame) -> Table:
    """Figure 3 in numbers: perplexities of correct and wrong answers."""
    rows = []
    for way in ("macro", "micro"):
        seen = samples.loc[samples[f"nll_{way}"].notna(), [f"nll_{way}", way]]
        right = seen[way] >= RIGHT
        for verdict, some in (("right", seen[right]), ("wrong", seen[~right])):
            if len(some):
                quartiles = np.exp(np.quantile(some[f"nll_{way}"], (0.25, 0.5, 0.75)))
                rows.append(
                    {"answers": f"{way}, {verdict}", "samples": len(some)}
                    | dict(zip(("lower quartile", "median", "upper quartile"), quartiles, strict=True))
                    | {"AUROC": auroc(-seen[f"nll_{way}"], right)}
                )
    note = "AUROC: how well a low perplexity separates right answers of the pathway from wrong; 50 is chance."
    style = dict.fromkeys(("lower quartile", "median", "upper quartile"), "{:.3f}")
    return Table("perplexities", "Perplexities", pd.DataFrame(rows), note, style)


# --- adaptive inference ------------------------------------------------------------------------------------


def adaptive(samples: pd.DataFrame) -> Table:
    """Table 9: what skipping the second look of confident answers costs and saves."""
    curve = adaptive_curve(samples, THRESHOLDS)
    note = (
        "No second look where the macro answer's confidence, 1/PPL, is above skip_confidence; computed from "
        "this run's answers and from the seconds of its stages."
    )
    if (samples["fallback"] == Fallback.SKIPPED).any():
        note += " The run itself skipped questions: what lies above its own threshold is not known."
    style = {"skip_confidence": "{:g}", "score against never": "{:+.2f}", "time against macro": "{:.2f}x"}
    return Table("adaptive", "Adaptive inference", curve, note, style | {"ms per sample": "{:.1f}"})


def adaptive_curve(samples: pd.DataFrame, thresholds: Sequence[float]) -> pd.DataFrame:
    """For each threshold that the samples can tell of, from high to low: the share skipped, the score, and
    where traces hold times, the time of a question. A question that was skipped in the run tells nothing of
    a threshold above its confidence."""
    costs = [name for name in samples if name.startswith("seconds_")]
    needed = ["confidence_macro", "fallback", "macro", "selected", *costs]
    samples = samples[needed].sort_values("confidence_macro")
    confidence = samples["confidence_macro"].to_numpy()
    was_skipped = samples["fallback"] == Fallback.SKIPPED
    most = confidence[was_skipped].min() if was_skipped.any() else np.inf
    chosen = np.array(sorted((value for value in thresholds if value <= most), reverse=True))
    looked = np.searchsorted(confidence, chosen, side="right")  # the others are above the threshold

    def mean_where_skipped(skipped: pd.Series, else_: pd.Series) -> NDArray[np.float64]:
        upto = np.concatenate([[0.0], np.cumsum(else_.to_numpy() - skipped.to_numpy())])
        return (skipped.sum() + upto[looked]) / len(samples)

    scores = mean_where_skipped(samples["macro"], samples["selected"])
    frame = pd.DataFrame(
        {
            "skip_confidence": chosen,
            "skipped": 100 * (1 - looked / len(samples)),
            "score": scores,
            "score against never": scores - samples["selected"].mean(),
        }
    )
    alone = samples["seconds_macro"]
    if (alone > 0).all():
        second = samples["seconds_locate"].fillna(0) + samples["seconds_micro"].fillna(0)
        seconds = mean_where_skipped(alone, alone + second)
        frame["ms per sample"] = 1000 * seconds
        frame["time against macro"] = seconds / alone.mean()
    return frame


# --- cost and boxes ----------------------------------------------------------------------------------------


def stages(samples: pd.DataFrame) -> Table:
    """Table 7: what each stage costs."""
    n = len(samples)
    sums = {
        stage: {what: samples[f"{what}_{stage}"].sum() / n for what in ("seconds", "tokens", "encodes")}
        for stage in STAGES
    }
    both = {what: sum(sums[stage][what] for stage in STAGES) for what in ("seconds", "tokens", "encodes")}
    rows = []
    for name, costs in [*sums.items(), ("in all", both)]:
        ran = int(samples[f"seconds_{name}"].notna().sum()) if name in sums else n
        rows.append(
            {
                "stage": name,
                "samples": ran,
                "ms per sample": 1000 * costs["seconds"],
                "time against macro": costs["seconds"] / (sums["macro"]["seconds"] or np.nan),
                "tokens per sample": costs["tokens"],
                "tokens against macro": costs["tokens"] / (sums["macro"]["tokens"] or np.nan),
                "encodes per sample": costs["encodes"],
            }
        )
    pixels = [samples[f"pixels_{name}"].sum() / n for name in ("macro", "micro")]
    frame = pd.DataFrame(rows)
    note = (
        "Means over all samples. A batch's time is shared equally among its samples. Tokens are "
        "those that the language model computed; macro alone is the plain model."
    )
    if any(pixels):
        frame["image pixels per sample"] = [pixels[0], 0, pixels[1], sum(pixels)]
        note += " Image pixels: of the image and of the crop as the model received them, each counted once."
    style = dict.fromkeys(("ms per sample", "tokens per sample"), "{:.1f}")
    style |= dict.fromkeys(("time against macro", "tokens against macro"), "{:.2f}x")
    style["image pixels per sample"] = "{:,.0f}"
    return Table("stages", "Time, tokens, encodes", frame, note, style)


def fallbacks(samples: pd.DataFrame) -> Table:
    """How many questions had a second look, and why the others had none."""
    named = samples["fallback"].where(samples["fallback"].notna(), "second look")
    rows = [
        {
            "what became of it": name,
            "samples": len(some),
            "share": 100 * len(some) / len(samples),
            "macro": some["macro"].mean(),
            "selected": some["selected"].mean(),
        }
        for name, some in samples[["macro", "selected"]].groupby(named, sort=False)
    ]
    frame = pd.DataFrame(rows)
    frame = frame.sort_values("samples", ascending=False, kind="stable") if len(frame) else frame
    return Table("fallbacks", "Second looks", frame, "", {"share": "{:.1f}%"})


def metrics(found: Mapping[str, Outcomes]) -> Table:
    """Every score of tasks that have more than one, aggregated by the host; those of a part of a run too."""
    rows = []
    for task, outcome in found.items():
        if len(outcome.loaded.aggregation()) == 1:
            continue
        ways = {way: outcome.aggregates(way) for way in ("macro", "micro", "selected")}  # type: ignore[arg-type]
        for macro, micro, selected in zip(*ways.values(), strict=True):
            values = {way: one.value for way, one in zip(ways, (macro, micro, selected), strict=True)}
            rows.append(
                {"task": task, "metric": selected.name}
                | values
                | {"gain": selected.value - macro.value, "standard error": selected.error}
            )
    note = "As lmms-eval prints them; gain: selected - macro, standard error: of selected."
    return Table("metrics", "All metrics", pd.DataFrame(rows), note, SIGNED)
