"""Standard errors and tests, against values calculated by hand or in exact arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dualfocus_lmms.tasks.common import uncertainty as statistics
from dualfocus_lmms.tasks.common.uncertainty import Difference, Interval


def first_column(means: np.ndarray) -> np.ndarray:
    return means[:, 0]


def test_mean_error_is_the_sample_deviation_over_the_root_of_n() -> None:
    # Deviations -3, -1, 1, 3: variance 20 / 3, over 4 values.
    assert statistics.mean_error([0, 2, 4, 6]) == pytest.approx(math.sqrt(20 / 3 / 4))
    assert math.isnan(statistics.mean_error([5.0]))


def test_mean_error_equals_scipys() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert statistics.mean_error(values) == pytest.approx(stats.sem(values))


def test_the_bootstrap_of_a_mean_matches_the_formula() -> None:
    values = np.random.default_rng(2).choice([0.0, 100.0], size=400, p=[0.3, 0.7])
    formula = values.std() / 20
    found = statistics.bootstrap_error(values, first_column, resamples=20_000)
    assert found == pytest.approx(formula, rel=0.02)


def test_the_bootstrap_of_a_ratio_matches_the_delta_method() -> None:
    random = np.random.default_rng(3)
    values = np.stack([random.poisson(30, 500), random.poisson(40, 500)], axis=1)
    (top, bottom), covariance = values.mean(axis=0), np.cov(values.T)
    slope = np.array([1 / bottom, -top / bottom**2])
    delta = math.sqrt(slope @ covariance @ slope / 500)
    found = statistics.bootstrap_error(values, lambda means: means[:, 0] / means[:, 1], resamples=20_000)
    assert found == pytest.approx(delta, rel=0.02)


def test_the_bootstrap_depends_on_the_seed_and_not_on_the_order() -> None:
    values = np.random.default_rng(4).integers(0, 2, size=(300, 3))
    found = statistics.bootstrap_error(values, first_column, seed=7)
    assert found == statistics.bootstrap_error(values[::-1], first_column, seed=7)
    assert found != statistics.bootstrap_error(values, first_column, seed=8)
    assert statistics.bootstrap_error([3.0, 3.0], first_column) == 0
    assert math.isnan(statistics.bootstrap_error([3.0], first_column))


def test_circular_error_draws_groups() -> None:
    groups = [number // 4 for number in range(400)]
    whole = [number % 2 for number in range(100)]  # half of the groups are correct in all four rotations
    scores = [100.0 if whole[group] or rotation % 4 else 0.0 for rotation, group in enumerate(groups)]
    found = statistics.circular_error(scores, groups)
    assert found == pytest.approx(5.0, rel=0.08)  # 100 * sqrt(0.5 * 0.5 / 100)
    shuffled = sorted(zip(scores, groups, strict=True), key=lambda pair: (pair[0], pair[1] * 37 % 101))
    assert statistics.circular_error(*zip(*shuffled, strict=True)) == found
    with pytest.raises(ValueError, match="shorter"):
        statistics.circular_error([1.0, 1.0], ["a"])


def test_paired_difference() -> None:
    # Differences 100, 0, -100, 100: mean 25, deviations 75, -25, -125, 75, variance 27,500 / 3, over 4.
    found = statistics.paired_difference([100, 0, 0, 100], [0, 0, 100, 0])
    assert found == Difference(25.0, pytest.approx(math.sqrt(27_500 / 3 / 4)))
    assert statistics.paired_difference([1, 2, 3], [0, 1, 2]) == Difference(1.0, 0.0)
    with pytest.raises(ValueError, match="shapes"):
        statistics.paired_difference([1, 2], [1])


def test_paired_bootstrap_error_draws_the_same_questions_for_both() -> None:
    random = np.random.default_rng(5)
    first = random.integers(0, 2, size=500) * 100
    second = np.where(random.random(500) < 0.9, first, 100 - first)
    found = statistics.paired_bootstrap_error(first, second, first_column, resamples=20_000)
    assert found == pytest.approx(statistics.paired_difference(first, second).error, rel=0.02)
    assert statistics.paired_bootstrap_error(first, first, first_column) == 0


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (5, 1, 14 / 64), (3, 3, 1.0)],
)
def test_mcnemar(gained: int, lost: int, expected: float) -> None:
    first = [True] * gained + [False] * lost + [True, False]
    second = [False] * gained + [True] * lost + [True, False]
    assert statistics.mcnemar(first, second) == pytest.approx(expected)
    assert statistics.mcnemar(second, first) == pytest.approx(expected)


def test_mcnemar_of_thousands() -> None:
    first, second = [True] * 2100 + [False] * 1900, [False] * 2100 + [True] * 1900
    # 2 * sum of C(4000, k) for k to 1900, over 2**4000, in exact arithmetic
    assert statistics.mcnemar(first, second) == pytest.approx(0.0016492663751356998, rel=1e-9)


@pytest.mark.parametrize(
    ("hits", "total", "confidence", "expected"),
    [
        # Solutions of (share - p)**2 = z**2 * p * (1 - p) / total
        (5, 10, 0.95, (23.659309051256404, 76.3406909487436)),
        (0, 10, 0.95, (0.0, 27.75327998628892)),
        (10, 10, 0.95, (72.24672001371108, 100.0)),
        (81, 263, 0.9, (26.331361718848147, 35.65663496084881)),
    ],
)
def test_wilson_interval(hits: int, total: int, confidence: float, expected: tuple[float, float]) -> None:
    found = statistics.wilson_interval(hits, total, confidence)
    assert isinstance(found, Interval)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_an_invalid_share_has_no_wilson_interval(hits: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{hits} of {total}"):
        statistics.wilson_interval(hits, total)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (1, 1), (3, 7), (0, 9), (40, 60), (300, 301)])
def test_flips_of_equal_differences_are_mcnemars_test(gained: int, lost: int) -> None:
    first = [True] * gained + [False] * lost + [True] * 5
    second = [False] * gained + [True] * lost + [True] * 5
    differences = 100.0 * (np.array(first, dtype=float) - second)
    assert statistics.sign_flip_test(differences) == pytest.approx(statistics.mcnemar(first, second))


def test_flips_of_other_differences() -> None:
    """Of 3 there are 8 ways to choose the signs: the sum is as far from 0 in 2 of them."""
    assert statistics.sign_flip_test([10, 20, 40]) == pytest.approx(2 / 8, abs=0.015)
    assert statistics.sign_flip_test([-10, -20, 40]) == 1.0  # no sum is nearer to 0
    assert statistics.sign_flip_test([30.0]) == 1.0
    values = np.random.default_rng(0).normal(0.3, 1, 60)
    assert statistics.sign_flip_test(values) == statistics.sign_flip_test(values[::-1])
    scipys = stats.permutation_test((values,), np.mean, permutation_type="samples", vectorized=True)
    assert statistics.sign_flip_test(values) == pytest.approx(scipys.pvalue, abs=0.01)


def test_holm_by_hand() -> None:
    assert statistics.holm([]) == []
    assert statistics.holm([0.03]) == [0.03]
    # 3 * 0.01, 2 * 0.02, and 1 * 0.03 that may not be below the one before it.
    assert statistics.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
