"""Standard errors and tests against scipy's, scikit-learn's and plain implementations, on random data."""

from __future__ import annotations

import math
from itertools import chain, combinations, product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, precision_score, recall_score

from dualfocus_lmms.tasks.common import scoring
from dualfocus_lmms.tasks.common import uncertainty as statistics


def ratio(means: np.ndarray) -> np.ndarray:
    return means[:, 0] / means[:, 1]


def test_wilsons_interval_is_scipys() -> None:
    for total, confidence in product((1, 2, 7, 50, 1319), (0.8, 0.95, 0.99)):
        for hits in sorted({0, 1, total // 3, total - 1, total}):
            theirs = stats.binomtest(hits, total).proportion_ci(confidence, "wilson")
            found = statistics.wilson_interval(hits, total, confidence)
            assert found == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemars_p_is_a_sum_of_binomial_probabilities(seed: int) -> None:
    first, second = np.random.default_rng(seed).random((2, 60)) < 0.6
    gained, lost = int((first & ~second).sum()), int((~first & second).sum())
    total = gained + lost
    tail = sum(math.comb(total, fewer) for fewer in range(min(gained, lost) + 1)) / 2**total
    assert statistics.mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_are_those_of_all_signs(seed: int) -> None:
    differences = np.random.default_rng(seed).choice([-60.0, -30, -10, 0, 10, 30, 100], 12)
    sums = np.array([np.dot(signs, differences) for signs in product((-1, 1), repeat=12)])
    exact = (np.abs(sums) >= abs(differences.sum()) - 1e-9).mean()
    error = math.sqrt(exact * (1 - exact) / statistics.SIGN_FLIPS)
    assert statistics.sign_flip_test(differences) == pytest.approx(exact, abs=4 * error + 2e-4)


@pytest.mark.parametrize("seed", range(5))
def test_holms_method_is_the_closure_of_bonferronis(seed: int) -> None:
    """A hypothesis is rejected where every set of hypotheses that it is in is, each by Bonferroni's test."""
    p_values = np.random.default_rng(seed).random(6).round(2) ** 2
    sets = list(chain.from_iterable(combinations(range(6), size) for size in range(1, 7)))
    expected = [
        max(min(1.0, len(some) * p_values[list(some)].min()) for some in sets if one in some)
        for one in range(6)
    ]
    assert statistics.holm(p_values) == pytest.approx(expected)


def test_the_bootstrap_is_scipys() -> None:
    random = np.random.default_rng(0)
    top, bottom = random.poisson(6, 120).astype(float), random.poisson(9, 120).astype(float)
    theirs = stats.bootstrap(
        (top, bottom),
        lambda one, other, axis: one.mean(axis) / other.mean(axis),
        paired=True,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(1),
    ).standard_error
    found = statistics.bootstrap_error(np.stack([top, bottom], axis=1), ratio, resamples=9999)
    assert found == pytest.approx(theirs, rel=0.04)


def test_the_mean_of_pairs_and_its_error_give_scipys_t() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 40))
    found = statistics.paired_difference(first, second)
    assert found.mean / found.error == pytest.approx(stats.ttest_rel(first, second).statistic)


def test_the_error_by_group_is_that_of_the_linearised_ratio() -> None:
    """What survey statistics uses for a mean of clusters of unequal sizes."""
    random = np.random.default_rng(0)
    groups = random.integers(0, 150, 600)
    values = 100.0 * (random.random(150)[groups] > random.random(600))
    _, places = np.unique(groups, return_inverse=True)
    residuals = np.bincount(places, values - values.mean())
    expected = math.sqrt((residuals**2).sum()) / len(values)
    assert statistics.grouped_mean_error(values, groups) == pytest.approx(expected, rel=0.08)


def test_the_error_of_circular_scores_is_scipys_of_the_lowest_of_each_group() -> None:
    scores = 100.0 * (np.random.default_rng(0).random((200, 4)) < 0.8)
    found = statistics.circular_error(scores.ravel().tolist(), np.repeat(range(200), 4).tolist())
    assert found == pytest.approx(stats.sem(scores.min(axis=1)), rel=0.08)


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_and_f1_are_scikit_learns(seed: int) -> None:
    labels, predictions = np.random.default_rng(seed).choice(["yes", "no"], (2, 50))
    pairs = [
        scoring.Pair(label=label, prediction=prediction)
        for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True)
    ]
    ours = [scoring.precision, scoring.recall, scoring.f1]
    theirs = [precision_score, recall_score, f1_score]
    for one, other in zip(ours, theirs, strict=True):
        assert one(pairs) == pytest.approx(100 * other(labels, predictions, pos_label="yes"))
