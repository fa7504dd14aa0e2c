"""A run's figures as plots: SVG texts that take their colours from the page they stand in.

Outside a page they have the colours of the images that `dualfocus ask --save` draws.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dualfocus_lmms.results.report import budgets, confidence, tables
from dualfocus_lmms.visualize import MACRO_COLOR, MICRO_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, LINE = "#1b1b1c", "#62625f", "#dadad7"
# What a page may set instead: a colour of the plot, and the variable that replaces it.
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", MACRO_COLOR: "--macro", MICRO_COLOR: "--micro"}
COLORS = {"macro": MACRO_COLOR, "micro": MICRO_COLOR, "selected": INK}
MOST_KINDS = 40  # rows of the plot by kind
LONGEST_TAIL = 0.99  # of the perplexities, the share that is shown
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names come from data
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def adaptive(samples: pd.DataFrame) -> str:
    """The score over the share of questions that skip the second look; the time too, where traces hold it."""
    thresholds = np.unique(
        np.append(samples["confidence_macro"].quantile(np.linspace(0, 1, 101)), (0.0, 1.0))
    )
    curve = tables.adaptive_curve(samples, thresholds.tolist())
    timed = "time against macro" in curve
    with _style():
        figure, axes = _figure((7.6 if timed else 4.6, 3.0), 2 if timed else 1)
        _curve(axes[0], curve, "score", "score", samples["macro"].mean())
        if timed:
            _curve(axes[1], curve, "time against macro", "time, macro alone = 1", 1.0)
        return _svg(figure, "adaptive")


def _curve(axis: Axes, curve: pd.DataFrame, column: str, label: str, alone: float) -> None:
    axis.axhline(alone, color=MACRO_COLOR, linewidth=1, linestyle=(0, (4, 3)))
    axis.annotate(
        "macro alone", (0, alone), (2, 3), textcoords="offset points", color=MACRO_COLOR, fontsize=9
    )
    axis.plot(curve["skipped"], curve[column], color=INK)
    axis.set(xlabel="questions without a second look, %", ylabel=label, xlim=(0, 100))
    axis.margins(y=0.15)
    axis.grid(axis="y")


def perplexities(samples: pd.DataFrame) -> str:
    """Figure 3: how the perplexities of right and wrong answers are distributed, each pathway in a panel."""
    known = samples[["nll_macro", "nll_micro"]].to_numpy()
    most = max(float(np.nanquantile(known, LONGEST_TAIL)), 0.05)
    edges = np.linspace(0, most, 41)
    with _style():
        figure, axes = _figure((7.6, 2.9), 2, sharey=True)
        for axis, way in zip(axes, ("macro", "micro"), strict=True):
            seen = samples.loc[samples[f"nll_{way}"].notna(), [f"nll_{way}", way]]
            right = seen[way] >= tables.RIGHT
            for some, color, filled in ((seen[~right], SOFT, False), (seen[right], COLORS[way], True)):
                _histogram(axis, np.exp(edges), some[f"nll_{way}"], len(seen), color, filled)
            axis.set(title=f"{way} answers", xlabel="perplexity", xscale="log", xlim=(1, np.exp(most)))
            axis.set_xticks(*_perplexity_ticks(np.exp(most)))
            axis.set_xticks([], minor=True)
            axis.grid(axis="y")
            axis.legend(["wrong", "right"], loc="upper right")
        axes[0].set_ylabel("answers, %")
        return _svg(figure, "perplexities")


def _histogram(axis: Axes, edges: np.ndarray, nll: pd.Series, total: int, color: str, filled: bool) -> None:
    """Shares of all answers of a pathway, so that the two kinds add up. The last bin holds the rest."""
    counts, _ = np.histogram(nll.clip(upper=np.log(edges[-1])), np.log(edges))
    shares = 100 * counts / max(total, 1)
    axis.stairs(shares, edges, fill=filled, color=color, alpha=0.55 if filled else 1, linewidth=1.6)


def _perplexity_ticks(most: float) -> tuple[list[float], list[str]]:
    """Round perplexities up to `most`, a tenth of the axis or more apart, and how they are written."""
    ticks = [1.0]
    for step in (1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 10, 20, 50, 100, 1000, 10_000):
        if step <= most and np.log(step / ticks[-1]) >= 0.1 * np.log(most):
            ticks.append(step)
    return ticks, [f"{tick:g}" for tick in ticks]


def by_b(samples: pd.DataFrame, own: float | None) -> str | None:
    """The score over b, with eq. 8 at 0 and the run's own b marked; None where no choice matters."""
    if confidence.by_b(samples).frame.empty:
        return None
    values = confidence.grid(samples, own)
    with _style():
        figure, (axis,) = _figure((7.6, 2.8), 1)
        axis.plot(values, confidence.scores_by_b(samples, values), color=INK)
        marks = [(0.0, "eq. 8, b = 0", SOFT)]
        marks += [] if own is None else [(own, f"this run, b = {own:+.2f}", INK)]
        for b, label, color in marks:
            axis.axvline(b, color=color, linewidth=1, linestyle=(0, (4, 3)), label=label)
        axis.set(
            xlabel="b: how much more certain micro must be, nats",
            ylabel="score",
            xlim=(values[0], values[-1]),
        )
        axis.grid(axis="y")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return _svg(figure, "bias")


def reliability(samples: pd.DataFrame) -> str:
    """The share of right answers over their confidence, each pathway in a panel; points are larger where more
    answers lie."""
    with _style():
        figure, axes = _figure((7.6, 3.2), 2, sharey=True)
        for axis, way in zip(axes, ("macro", "micro"), strict=True):
            confidences, right = confidence.confident(samples, way)
            bins = confidence.binned(confidences, right)
            error = 100 * confidence.calibration_error(confidences, right)
            axis.plot((0, 100), (0, 100), color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
            axis.plot(100 * bins["confidence"], 100 * bins["right"], color=COLORS[way], linewidth=1)
            sizes = 8 + 200 * bins["samples"] / max(len(right), 1)
            axis.scatter(100 * bins["confidence"], 100 * bins["right"], s=sizes, color=COLORS[way])
            title = f"{way} answers, ECE {error:.1f}" if len(right) else f"no {way} answer"
            axis.set(title=title, xlabel="confidence, 1/PPL, %", xlim=(-3, 103), ylim=(-3, 103))
            axis.grid()
        axes[0].set_ylabel("right answers, %")
        return _svg(figure, "reliability")


def kinds(samples: pd.DataFrame) -> str | None:
    """Figure 4: the pathways' scores by kind of question; None where there are no kinds."""
    frame = tables.dimensions(samples).frame.head(MOST_KINDS)
    if frame.empty:
        return None
    unique = frame["kind"].is_unique
    names = [row.kind if unique else f"{row.task}: {row.kind}" for row in frame.itertuples()]
    rows = np.arange(len(frame))[::-1]
    with _style():
        figure, (axis,) = _figure((7.6, 0.9 + 0.34 * len(frame)), 1)
        axis.hlines(rows, frame["macro"], frame["selected"], color=LINE, linewidth=3)
        for way, mark in (("macro", "o"), ("micro", "D"), ("selected", "|")):
            size = 130 if way == "selected" else 34
            axis.scatter(frame[way], rows, s=size, marker=mark, color=COLORS[way], label=way, zorder=3)
        axis.set_yticks(rows, names)
        axis.set(xlabel="score", ylim=(-0.7, len(frame) - 0.3))
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)
        return _svg(figure, "kinds")


def areas(samples: pd.DataFrame) -> str | None:
    """How large the boxes are; None where there is none."""
    known = samples["area"].dropna()
    if known.empty:
        return None
    with _style():
        figure, (axis,) = _figure((7.6, 2.2), 1)
        weights = np.full(len(known), 100 / len(known))
        axis.hist(
            known, bins=np.linspace(0, 100, 41).tolist(), weights=weights, color=MICRO_COLOR, alpha=0.75
        )
        axis.set(xlabel="area of the box, % of the image", ylabel="boxes, %", xlim=(0, 100))
        axis.grid(axis="y")
        return _svg(figure, "areas")


def tokens(spent: pd.DataFrame) -> str | None:
    """The score over the tokens of a question, a line for macro only and one for DualFocus; None where the
    frame of `budgets.by_budget` is empty."""
    if spent.empty:
        return None
    with _style():
        figure, (axis,) = _figure((7.6, 3.2), 1)
        for line, color, mark in ((budgets.MACRO, MACRO_COLOR, "o"), (budgets.BOTH, INK, "D")):
            some = spent[spent["answers"] == line]
            axis.plot(
                some["tokens per question"], some["score"], mark, linestyle="-", color=color, label=line
            )
        axis.set(xlabel="tokens read per question, mean", ylabel="score")
        axis.margins(x=0.06, y=0.15)
        axis.grid()
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0)
        return _svg(figure, "budgets")


def _style() -> Any:
    from matplotlib import rc_context

    return rc_context(STYLE)


def _figure(size: tuple[float, float], columns: int, **options: Any) -> tuple[Figure, Sequence[Axes]]:
    """A figure without a window, and its axes in a row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.patch.set_alpha(0)
    return figure, list(axes)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element, the same text for the same figures; no id comes twice on a page."""
    from matplotlib import rc_context

    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata=nothing)
        text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    mark = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-{mark}-", text)
    for color, variable in VARIABLES.items():
        text = re.sub(color, f"var({variable}, {color})", text, flags=re.IGNORECASE)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: var(--sans, sans-serif)", text)
