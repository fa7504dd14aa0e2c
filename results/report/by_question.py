"""Intervals and tests whose unit is the question: all samples of one together, in whatever order its options
stand (CircularEval, HR-Bench's cycles). Their answers agree too often to count as independent.

samples: see `tables`. Where each question is one sample, these are the usual intervals and McNemar's test.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dualfocus_lmms.tasks.common.uncertainty import (
    Interval,
    group_sums,
    grouped_mean_error,
    sign_flip_test,
    wilson_interval,
)

NORMAL_95 = 1.96


def questions(samples: pd.DataFrame) -> NDArray[np.int64]:
    """(samples,): the number of the question of each sample, from 0 on."""
    return samples.groupby(["task", "question_key"], sort=False).ngroup().to_numpy()


def count(samples: pd.DataFrame) -> int:
    """How many questions there are."""
    return len(np.unique(questions(samples)))


def interval(first: ArrayLike, second: ArrayLike, groups: ArrayLike) -> Interval:
    """The 95% interval of mean(first) - mean(second), both of the same samples; nan for a single question.

    groups: the question of each sample. It is drawn with all of its samples (bootstrap).
    """
    gains = np.subtract(first, second)
    half = NORMAL_95 * grouped_mean_error(gains, groups)
    return Interval(gains.mean() - half, gains.mean() + half)


def p_value(first: ArrayLike, second: ArrayLike, groups: ArrayLike) -> float:
    """The two-sided p of a difference between two ways to be right, both of the same samples.

    first, second: whether each sample is right. The sign of a question's difference is flipped as a whole:
    McNemar's exact test where each question is one sample.
    """
    return sign_flip_test(group_sums(np.subtract(first, second, dtype=float), groups))


def share_interval(right: ArrayLike, groups: ArrayLike) -> Interval:
    """Wilson's 95% interval, in percent, of the share of samples that are right.

    The number of independent answers in it is the one that gives the standard error by question: between that
    of the questions, where a question is all right or all wrong, and that of the samples.
    """
    values = np.asarray(right, dtype=float)
    share, total = values.mean(), len(values)
    asked = len(np.unique(groups))
    if asked < total:
        error = grouped_mean_error(values, groups) if asked > 1 else 0.0
        independent = share * (1 - share) / error**2 if error > 0 else asked
        total = min(max(independent, asked), total)
    return wilson_interval(share * total, total)
