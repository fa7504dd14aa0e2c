"""Scores by b, against choosing sample by sample."""

from __future__ import annotations

import numpy as np
import pytest

from dualfocus_lmms.results import bias

NAN = float("nan")


def plainly(advantage, gains, b: float) -> float:
    chosen = [gain if difference >= b else 0 for difference, gain in zip(advantage, gains, strict=True)]
    return sum(chosen) / len(chosen)


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    advantage = chance.normal(0.3, 1, 200).round(1)  # some are equal
    gains = chance.choice([-100.0, 0.0, 100.0, 30.0], 200, p=[0.2, 0.5, 0.2, 0.1])
    gains[:20], advantage[:20] = 0, NAN
    return advantage, gains


def test_the_curve_is_that_of_choosing_one_by_one(answers):
    bs = np.linspace(-3, 3, 61).round(3)
    assert bias.curve(*answers, bs) == pytest.approx([plainly(*answers, b) for b in bs])
    assert bias.curve(*answers, [100.0]) == 0
    assert bias.curve(*answers, [-100.0]) == pytest.approx(answers[1].mean())


def test_the_best_b_is_no_worse_than_any_other(answers):
    best = bias.best(*answers)
    others = np.linspace(-4, 4, 8001)
    assert bias.curve(*answers, [best])[0] == pytest.approx(bias.curve(*answers, others).max())


@pytest.mark.parametrize(
    ("advantage", "gains", "expected"),
    [
        ([1.0, 2.0], [-100, 100], 1.5),  # the middle of what chooses alike
        ([-1.0, 2.0], [-100, 100], 0.0),  # eq. 8 is among the best
        ([0.0, -1.0], [100, -100], 0.0),  # a tie goes to micro, as in eq. 8
        ([1.0, 2.0], [-100, -100], 2.5),  # macro always
        ([-2.0, -1.0], [100, 100], -2.5),  # micro always
        ([-3.0, -1.0, 1.0, 2.0], [100, -100, -100, 100], 1.5),  # the nearest to 0 of two that are as good
        ([1.0, NAN, 2.0, 1.7], [-100, 0, 100, 0], 1.5),  # what does not matter does not count
    ],
)
def test_of_several_b_that_are_as_good(advantage, gains, expected):
    assert bias.best(advantage, gains) == expected


def test_without_any_difference_there_is_none():
    assert np.isnan(bias.best([1.0, NAN], [0, 0]))
    assert np.isnan(bias.best([], []))


def test_weights_count_samples_several_times():
    advantage, gains, weights = [1.0, 2.0, 3.0], [-100, 100, -100], [1, 1, 3]
    again = bias.best(np.repeat(advantage, weights), np.repeat(gains, weights))
    assert bias.best(advantage, gains, weights) == again == 3.5
    assert bias.best(advantage, gains, [1, 3, 1]) == 1.5
    assert bias.best(advantage, gains, [0, 1, 0]) == 0
