"""The gate's p by standard errors against scipy's. How often it fails is in test_false_alarms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from dualfocus_lmms.results.baseline import Figure, TaskScores
from dualfocus_lmms.results.gate.significance import significance
from dualfocus_lmms.tasks.common.uncertainty import mean_error


def without_scores(value: float, error: float, samples: int = 1000) -> TaskScores:
    return TaskScores({"f1": Figure(value, error, True)}, samples, plain=True, scores=[])


@pytest.mark.parametrize(("drop", "errors"), [(3.0, (1.5, 1.2)), (-0.7, (0.4, 0.4)), (0.0, (1.0, 2.0))])
def test_the_p_of_standard_errors_is_that_of_the_normal_distribution(
    drop: float, errors: tuple[float, float]
) -> None:
    p, test = significance("f1", without_scores(70, errors[0]), without_scores(70 - drop, errors[1]))
    assert test == "z"
    assert p == pytest.approx(2 * stats.norm.sf(abs(drop) / np.hypot(*errors)))


def test_it_is_welchs_where_there_are_many_answers() -> None:
    before, now = np.random.default_rng(0).choice([0.0, 30, 60, 100], (2, 2000))
    p, _ = significance(
        "f1", *(without_scores(some.mean(), mean_error(some), len(some)) for some in (before, now))
    )
    assert p == pytest.approx(stats.ttest_ind(before, now, equal_var=False).pvalue, abs=1e-3)
