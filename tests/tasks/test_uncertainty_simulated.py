"""Intervals hold the true value in about 95% of simulated runs, and tests have at most their size.

Of 300 runs, 95% are 285 with a standard error of 3.8: less than 270 or, for a test, more than 30 false
alarms, are beyond chance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from dualfocus_lmms.tasks.common import scoring
from dualfocus_lmms.tasks.common import uncertainty as statistics

RUNS, COVERED, ALARMS = 300, 270, 30
Within = Callable[[np.random.Generator], bool]


def mean_of_scores(random: np.random.Generator) -> bool:
    values = random.choice([0.0, 30, 60, 90, 100], 80)
    return abs(values.mean() - 56) <= 1.96 * statistics.mean_error(values)


def wilson(random: np.random.Generator) -> bool:
    low, high = statistics.wilson_interval(int(random.binomial(25, 0.9)), 25)
    return low <= 90 <= high


def mean_by_group(random: np.random.Generator) -> bool:
    """Four samples of each question, which mostly agree."""
    groups = np.repeat(range(120), 4)
    right = (random.random(120) < 0.7)[groups] ^ (random.random(480) < 0.1)
    half = 1.96 * statistics.grouped_mean_error(100.0 * right, groups)
    return abs(100 * right.mean() - 66) <= half  # 0.7 * 0.9 + 0.3 * 0.1


def circular(random: np.random.Generator) -> bool:
    right = random.random((150, 4)) < 0.9
    score = 100 * right.all(axis=1).mean()
    error = statistics.circular_error((100.0 * right).ravel().tolist(), np.repeat(range(150), 4).tolist())
    return abs(score - 100 * 0.9**4) <= 1.96 * error


def f1(random: np.random.Generator) -> bool:
    """Half of 200 labels are yes; 80% of these are found, and 10% of the others."""
    true = random.random(200) < 0.5
    predicted = random.random(200) < np.where(true, 0.8, 0.1)
    words = [np.where(some, "yes", "no").tolist() for some in (true, predicted)]
    pairs = [scoring.Pair(label=label, prediction=said) for label, said in zip(*words, strict=True)]
    error = scoring.f1_error(pairs)
    assert isinstance(error, float)
    return abs(scoring.f1(pairs) - 100 * 2 * 0.4 / (0.5 + 0.45)) <= 1.96 * error


def gain_of_f1(random: np.random.Generator) -> bool:
    """Two runs on the same questions, of which the second finds more."""
    true = random.random(200) < 0.5
    luck = random.random(200)
    found = [luck < np.where(true, hit, 0.1) for hit in (0.7, 0.8)]
    before, now = (np.stack([said & true, said, true], axis=1).astype(float) for said in found)
    error = statistics.paired_bootstrap_error(now, before, scoring.f1_of)
    gain = [float(scoring.f1_of(some.mean(axis=0, keepdims=True))[0]) for some in (before, now)]
    return abs(gain[1] - gain[0] - 100 * (0.8 / 0.95 - 0.7 / 0.9)) <= 1.96 * error


@pytest.mark.parametrize("covers", [mean_of_scores, wilson, mean_by_group, circular, f1, gain_of_f1])
def test_an_interval_holds_the_true_value(covers: Within) -> None:
    random = np.random.default_rng(0)
    assert COVERED <= sum(covers(random) for _ in range(RUNS)) < RUNS


def flipped(random: np.random.Generator) -> float:
    """Graded scores of which a fifth change, as often up as down."""
    differences = random.choice([-60.0, -30, 30, 60], 60) * (random.random(60) < 0.2)
    return statistics.sign_flip_test(differences, flips=999)


def flipped_by_question(random: np.random.Generator) -> float:
    """Four samples a question: its differences mostly have one sign."""
    signs = random.choice([-1.0, 1], 60)
    return statistics.sign_flip_test(signs * random.binomial(4, 0.3, 60), flips=999)


def mcnemar(random: np.random.Generator) -> float:
    return statistics.mcnemar(*(random.random((2, 200)) < 0.7).tolist())


def holm_of_ten(random: np.random.Generator) -> float:
    """The smallest of ten tests that depend on each other."""
    values = random.normal(size=60) + random.normal(size=(10, 60))
    return min(statistics.holm(stats.ttest_1samp(values, 0, axis=1).pvalue.tolist()))


@pytest.mark.parametrize("p_value", [flipped, flipped_by_question, mcnemar, holm_of_ten])
def test_a_test_has_at_most_its_size(p_value: Callable[[np.random.Generator], float]) -> None:
    random = np.random.default_rng(0)
    assert sum(p_value(random) < 0.05 for _ in range(RUNS)) <= ALARMS
