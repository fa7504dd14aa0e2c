"""Scores by b, how much more certain micro must be: macro wins where ln PPL(macro) < ln PPL(micro) + b.

advantage: (n,) ln PPL(macro) - ln PPL(micro), nats, nan where there is no micro answer. gains: (n,) the score
of micro minus that of macro, 0 there. b = 0 is eq. 8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

BEYOND = 0.5  # nats: how far a b that always chooses one pathway lies from the last difference


def curve(advantage: ArrayLike, gains: ArrayLike, bs: ArrayLike) -> NDArray[np.float64]:
    """(bs,): the gain over macro alone, a mean over all n, with each b."""
    differences, gained = np.asarray(advantage, dtype=float), np.asarray(gains, dtype=float)
    known = ~np.isnan(differences)
    order = np.argsort(differences[known], kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(gained[known][order])])
    below = np.searchsorted(differences[known][order], np.asarray(bs, dtype=float), side="left")
    return (sums[-1] - sums[below]) / max(len(gained), 1)


def best(advantage: ArrayLike, gains: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The b with the highest mean score; nan where no two answers are worth different scores.

    All b between two neighbouring differences choose alike: 0 where it is among them, else their middle. Of
    several with the same score the one nearest to 0. weights: (n,) how often each sample counts, else once.
    """
    differences, gained = np.asarray(advantage, dtype=float), np.asarray(gains, dtype=float)
    counted = np.ones(len(gained)) if weights is None else np.asarray(weights, dtype=float)
    matters = (gained != 0) & (counted > 0) & ~np.isnan(differences)
    if not matters.any():
        return float("nan")
    steps, places = np.unique(differences[matters], return_inverse=True)
    worth = np.bincount(places, gained[matters] * counted[matters])
    totals = np.concatenate([[0.0], np.cumsum(worth[::-1])])[::-1]  # of micro from each step on; of none
    low = np.concatenate([[steps[0] - 2 * BEYOND], steps])
    high = np.concatenate([steps, [steps[-1] + 2 * BEYOND]])
    holds_zero = np.concatenate([[True], steps < 0]) & np.concatenate([steps >= 0, [True]])
    middles = np.where(holds_zero, 0.0, (low + high) / 2)
    tied = middles[totals >= totals.max() - 1e-9 * np.abs(worth).sum()]
    return float(tied[np.argmin(np.abs(tied))])
