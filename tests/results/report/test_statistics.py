"""The report's intervals and areas against scipy's and by simulation; its p is in test_by_question."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dualfocus_lmms.results.report import by_question, tables

RUNS = 200  # of which 95% are 190, with a standard error of 3.1
QUESTIONS, ORDERS = 100, 4


def rotations(random: np.random.Generator, share: float) -> np.ndarray:
    """Whether each sample is correct, where the orders of a question agree in nine of ten."""
    right = np.repeat(random.random(QUESTIONS) < share, ORDERS)
    return right ^ (random.random(len(right)) < 0.1)


@pytest.mark.parametrize("seed", range(3))
def test_the_auroc_is_the_statistic_of_mann_and_whitney(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(80) < 0.4
    values = (positive + random.normal(size=80)).round(1)  # with ties
    u = stats.mannwhitneyu(values[positive], values[~positive]).statistic
    assert tables.auroc(values, positive) == pytest.approx(100 * u / (positive.sum() * (~positive).sum()))


def test_the_interval_of_a_gain_holds_the_true_one() -> None:
    """70% against 60%, of which the orders turn a tenth around: 66 and 58 percent."""
    random, groups, held = np.random.default_rng(0), np.repeat(range(QUESTIONS), ORDERS), 0
    for _ in range(RUNS):
        now, before = (100.0 * rotations(random, share) for share in (0.7, 0.6))
        low, high = by_question.interval(now, before, groups)
        held += low <= 8 <= high
    assert 180 <= held < RUNS


@pytest.mark.parametrize("share", [0.7, 0.97])
def test_the_interval_of_a_share_holds_the_true_one(share: float) -> None:
    random, groups, held = np.random.default_rng(0), np.repeat(range(QUESTIONS), ORDERS), 0
    for _ in range(RUNS):
        low, high = by_question.share_interval(rotations(random, share), groups)
        held += low <= 100 * (0.9 * share + 0.1 * (1 - share)) <= high
    assert 180 <= held <= RUNS
