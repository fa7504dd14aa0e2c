"""Standard errors and tests: pure functions on numbers, for any score.

One value, or one row of values, stands for one unit that is resampled: a question, or where a
question has several rotations (CircularEval), all of its rotations together.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
SIGN_FLIPS = 9999
_AT_ONCE = 100  # resamples drawn together; bounds the memory

# Means of the columns, (resamples, columns), to one score each, (resamples,).
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Difference(NamedTuple):
    """The mean of paired differences and its standard error, in the values' unit."""

    mean: float
    error: float


class Interval(NamedTuple):
    """Limits in percent."""

    low: float
    high: float


def mean_error(values: ArrayLike) -> float:
    """The standard error of the mean of independent values; nan for fewer than two."""
    array = np.asarray(values, dtype=float)
    return float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float("nan")


def bootstrap_error(
    values: ArrayLike, statistic: Statistic, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """The standard error of a score that is a function of means, such as F1; nan for fewer than two rows.

    values: (n,) or (n, columns), one row for each unit that is resampled. The same rows in another order
    give the same error: what is drawn is how often each distinct row occurs.
    """
    array = np.asarray(values, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    total = len(array)
    if total < 2:
        return float("nan")
    rows, counts = np.unique(array, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    scores = []
    for start in range(0, resamples, _AT_ONCE):
        drawn = random.multinomial(total, counts / total, size=min(_AT_ONCE, resamples - start))
        scores.append(statistic(drawn @ rows / total))
    return float(np.concatenate(scores).std(ddof=1))


def circular_error(scores: Sequence[float], groups: Sequence[Hashable], seed: int = 0) -> float:
    """The standard error of CircularEval, resampled by group; nan for fewer than two groups.

    scores: one for each rotation, in any unit; the score of a group is its lowest. groups: the group of each
    score.
    """
    lowest: dict[Hashable, float] = {}
    for score, group in zip(scores, groups, strict=True):
        lowest[group] = min(score, lowest.get(group, score))
    return bootstrap_error(list(lowest.values()), lambda means: means[:, 0], seed)


def group_sums(values: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """(groups,): the sum of the values of each group. groups: the group of each value."""
    _, indices = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(indices, np.asarray(values, dtype=float)).astype(float)


def grouped_mean_error(values: ArrayLike, groups: ArrayLike, seed: int = 0) -> float:
    """The standard error of the mean of all values, drawn by group (bootstrap); nan for a single group.

    groups: the group of each value, such as the question that several answers belong to.
    """
    array = np.asarray(values, dtype=float)
    rows = np.stack([group_sums(array, groups), group_sums(np.ones(len(array)), groups)], axis=1)
    return bootstrap_error(rows, lambda means: means[:, 0] / means[:, 1], seed)


def paired_difference(first: ArrayLike, second: ArrayLike) -> Difference:
    """The mean of first - second on the same questions, in the same order, with its standard error."""
    differences = np.subtract(*_pair(first, second))
    return Difference(float(differences.mean()), mean_error(differences))


def paired_bootstrap_error(
    first: ArrayLike, second: ArrayLike, statistic: Statistic, seed: int = 0, resamples: int = RESAMPLES
) -> float:
    """The standard error of statistic(first) - statistic(second), both of the same questions in each draw.

    first, second: as the values of `bootstrap_error`, in the same order. ValueError for unequal shapes.
    """
    one, other = (array.reshape(len(array), -1) for array in _pair(first, second))
    columns = one.shape[1]

    def difference(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return statistic(means[:, :columns]) - statistic(means[:, columns:])

    return bootstrap_error(np.hstack([one, other]), difference, seed, resamples)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The p-value of McNemar's exact test, two-sided; 1 when both are correct on the same questions.

    first, second: whether each is correct, on the same questions in the same order.
    """
    from scipy.stats import binomtest

    pairs = [(bool(one), bool(other)) for one, other in zip(first, second, strict=True)]
    gained, lost = pairs.count((True, False)), pairs.count((False, True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def sign_flip_test(differences: ArrayLike, seed: int = 0, flips: int = SIGN_FLIPS) -> float:
    """The two-sided p-value of a mean of paired differences, by flipping the sign of each; 1 without any.

    differences: one for each question. Exact where those that are not 0 have one size, which makes it
    McNemar's test for correct and wrong answers; else from `flips` random flips. A single difference has
    p = 1, however large. The same differences in another order give the same p.
    """
    from scipy.special import bdtr

    changed = np.asarray(differences, dtype=float)
    changed = changed[changed != 0]
    sizes, counts = np.unique(np.abs(changed).round(9), return_counts=True)
    if len(sizes) < 2:
        fewer = min((changed > 0).sum(), (changed < 0).sum())
        return min(1.0, 2 * float(bdtr(fewer, len(changed), 0.5)))
    random = np.random.default_rng(seed)
    least = abs(changed.sum()) * (1 - 1e-9)  # floats
    as_far = 0
    for start in range(0, flips, _AT_ONCE):
        positive = random.binomial(counts, 0.5, size=(min(_AT_ONCE, flips - start), len(sizes)))
        as_far += int((np.abs((2 * positive - counts) @ sizes) >= least).sum())
    return (as_far + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's method, in the same order.

    The chance that any true hypothesis has a corrected value below alpha is at most alpha, however many there
    are and however they depend on each other.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def wilson_interval(hits: float, total: float, confidence: float = 0.95) -> Interval:
    """Wilson's interval, in percent, of the share of `hits` in `total`; neither has to be a whole number.

    ValueError unless 0 <= hits <= total and total > 0.
    """
    from scipy.special import ndtri

    if not 0 <= hits <= total or total == 0:
        raise ValueError(f"hits must lie between 0 and total, and total above 0, got {hits} of {total}")
    share, z = hits / total, float(ndtri(0.5 + confidence / 2))
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return Interval(100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != other.shape:
        raise ValueError(f"both must hold the same questions, got shapes {one.shape} and {other.shape}")
    return one, other
