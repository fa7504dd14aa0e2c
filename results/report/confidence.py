"""How far the confidences of answers can be trusted, and what another threshold between them would give.

samples: see `tables`. An answer's confidence is 1/PPL, the geometric mean of its tokens' probabilities. It is
calibrated where, of the answers with confidence c, the share c is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dualfocus_lmms.results import bias
from dualfocus_lmms.results.report.tables import RIGHT, SIGNED, Table, micro_scores, parts

BINS = 15  # of equal width, from 0 to 1


def reliability(samples: pd.DataFrame) -> Table:
    """Confidence against the share of right answers, of both pathways, task by task."""
    rows = [
        {"task": name, "answers": way, **_reliability_row(confidences, right)}
        for name, some in parts(samples)
        for way in ("macro", "micro")
        for confidences, right in [confident(some, way)]
        if len(right)
    ]
    note = (
        "Confidence: 1/PPL, the geometric mean of token probabilities. Right: a score of at least "
        f"{RIGHT:.0f}. ECE, the expected calibration error: by how much both differ in {BINS} bins of equal "
        "width, weighted by their answers, in points; 0 is calibrated. Of micro the answers that there are."
    )
    return Table("reliability", "Confidence", pd.DataFrame(rows), note, {"too confident by": "{:+.2f}"})


def confident(samples: pd.DataFrame, way: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(confidences, right) of the answers that a pathway gave."""
    seen = samples[samples[f"nll_{way}"].notna()]
    return np.exp(-seen[f"nll_{way}"].to_numpy(dtype=float)).clip(0, 1), (seen[way] >= RIGHT).to_numpy()


def _reliability_row(confidences: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "samples": len(right),
        "right": 100 * right.mean(),
        "confidence": 100 * confidences.mean(),
        "too confident by": 100 * (confidences.mean() - right.mean()),
        "ECE": 100 * calibration_error(confidences, right),
    }


def binned(confidences: ArrayLike, right: ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """Confidence and share of right answers in each bin that has an answer: samples, confidence, right, as
    means from 0 to 1. A confidence on an edge lies in the lower bin; 0 lies in the first."""
    values, correct = np.asarray(confidences, dtype=float), np.asarray(right, dtype=float)
    places = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(places, minlength=bins)
    filled = counts > 0
    means = [np.bincount(places, one, bins)[filled] / counts[filled] for one in (values, correct)]
    return pd.DataFrame({"samples": counts[filled], "confidence": means[0], "right": means[1]})


def calibration_error(confidences: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """The expected calibration error, 0 to 1 (Naeini et al. 2015): the mean over all answers of how far their
    bin's confidence lies from its share of right answers; nan without answers."""
    found = binned(confidences, right, bins)
    if found.empty:
        return float("nan")
    return float(np.average((found["confidence"] - found["right"]).abs(), weights=found["samples"]))


# --- accuracy against b ------------------------------------------------------------------------------------


def scores_by_b(samples: pd.DataFrame, bs: ArrayLike) -> NDArray[np.float64]:
    """(bs,): the mean score where macro wins with ln PPL(macro) < ln PPL(micro) + b, in percent."""
    return float(samples["macro"].mean()) + bias.curve(*_advantages_and_gains(samples), bs)


def by_b(samples: pd.DataFrame, fitted: Mapping[str, Any] | None = None) -> Table:
    """What b would give on these samples, task by task; empty where no choice matters.

    fitted: `calibration` in the settings of the run.
    """
    own = own_b(fitted)
    rows = []
    for name, some in parts(samples):
        best = bias.best(*_advantages_and_gains(some))
        if not np.isnan(best):
            row = {"task": name, "choice matters": int((micro_scores(some) != some["macro"]).sum())}
            bs = {"b = 0": 0.0, "the run's b": own, "best b": best}
            row |= {f"score, {label}": scores_by_b(some, [b])[0] for label, b in bs.items() if b is not None}
            rows.append(row | {"oracle": some["oracle"].mean(), "best b": best})
    note = (
        "Macro wins where ln PPL(macro) < ln PPL(micro) + b; b = 0 is the paper's eq. 8. Best b: on these "
        "very samples, so that its score is more than a b that is fitted elsewhere gives (`dualfocus "
        "calibrate`). "
        "Choice matters: samples where both answers are worth different scores."
    )
    if own is not None:
        note += f" The run's own b is {own:+.4f}."
    return Table("bias", "Accuracy against b", pd.DataFrame(rows), note, SIGNED | {"best b": "{:+.3f}"})


def own_b(fitted: Mapping[str, Any] | None) -> float | None:
    """The b that a run chose by; None where its rule has none."""
    return None if fitted is None else fitted.get("b")


def grid(samples: pd.DataFrame, own: float | None = None, points: int = 401) -> NDArray[np.float64]:
    """(points,): values of b that show the curve: 98% of the differences of both answers, 0, and `own`."""
    advantage, gains = _advantages_and_gains(samples)
    known = advantage[~np.isnan(advantage) & (gains != 0)]
    low, high = np.quantile(known, (0.01, 0.99))
    marks = [0.0, *([] if own is None else [own])]
    return np.linspace(min(low, *marks) - 0.05, max(high, *marks) + 0.05, points)


def _advantages_and_gains(samples: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """See `bias`."""
    advantage = (samples["nll_macro"] - samples["nll_micro"]).to_numpy(dtype=float)
    return advantage, (micro_scores(samples) - samples["macro"]).to_numpy(dtype=float)
