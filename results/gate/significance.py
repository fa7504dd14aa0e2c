"""How probable a difference between a metric then and now is by chance. Judges nothing.

Where both sides have the score of every answer, they are compared in pairs; else by their standard errors, as
if they were independent, which misses more.
"""

from __future__ import annotations

from math import erfc, sqrt

import numpy as np

from dualfocus_lmms.results.baseline import TaskScores
from dualfocus_lmms.tasks.common.uncertainty import sign_flip_test

HIGHEST = 100.0  # of the score of one answer


def significance(metric: str, before: TaskScores, now: TaskScores) -> tuple[float | None, str]:
    """(p, name of the test) of a metric that both sides have, two-sided; (None, "none") without a test."""
    both = pairs(before, now) if metric == before.metric == now.metric else {}
    if before.plain and now.plain and len(both) == before.samples == now.samples:
        then, this = np.array(list(both.values()), dtype=float).T
        binary = np.isin((then, this), (0.0, HIGHEST)).all()
        return sign_flip_test(this - then), "McNemar" if binary else "sign flips"
    one, other = before.metrics[metric], now.metrics[metric]
    if one.error is None or other.error is None:
        return None, "none"
    error = sqrt(_error(one.error, before.samples) ** 2 + _error(other.error, now.samples) ** 2)
    return _two_sided(other.value - one.value, error), "z"


def pairs(before: TaskScores, now: TaskScores) -> dict[int, tuple[float, float]]:
    """(then, now) of every sample that has both scores, by doc_id."""
    both = zip(before.scores, now.scores, strict=False)  # the shorter one ends it
    return {
        key: (then, this) for key, (then, this) in enumerate(both) if then is not None and this is not None
    }


def _error(error: float, samples: int | None) -> float:
    """A standard error that is at least what one answer more or less would change: a few answers that happen
    to be all correct have a standard error of 0, and are no proof."""
    return max(error, HIGHEST / samples) if samples else error


def _two_sided(difference: float, error: float) -> float:
    """How likely a difference at least this large is if there is none, by the normal distribution."""
    if error > 0:
        return erfc(abs(difference) / error / sqrt(2))
    return 1.0 if difference == 0 else 0.0
