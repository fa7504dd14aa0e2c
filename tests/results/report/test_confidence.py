"""Confidences against right answers, and accuracy against b, on samples that were made by hand."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dualfocus_lmms.results.report import confidence, plots, tables

NAN = float("nan")


def samples(*rows: tuple[Any, ...], task: str = "t") -> pd.DataFrame:
    """(confidence, score) of macro and of micro; None where there is no micro answer."""
    made = []
    for number, (macro, micro) in enumerate(rows):
        one = {"task": task, "doc_id": number, "question_key": str(number), "macro": macro[1]}
        one |= {"nll_macro": -math.log(macro[0]), "micro": NAN, "nll_micro": NAN}
        if micro is not None:
            one |= {"nll_micro": -math.log(micro[0]), "micro": micro[1]}
        made.append(one | {"oracle": max(macro[1], -1 if micro is None else micro[1])})
    return pd.DataFrame(made)


def plainly(confidences, right, bins: int) -> float:
    """The definition, sample by sample: sum of n_k / n * |right_k - confidence_k|, edges in the lower bin."""
    total = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = [
            (one, hit)
            for one, hit in zip(confidences, right, strict=True)
            if low < one <= high or (place == 0 and one == 0)
        ]
        if inside:
            mean = sum(one for one, _ in inside) / len(inside)
            share = sum(hit for _, hit in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(share - mean)
    return total


@pytest.mark.parametrize("bins", [1, 4, 10, 15])
def test_ece_is_that_of_its_definition(bins: int):
    chance = random.Random(bins)
    values = [chance.random() for _ in range(300)] + [0.0, 1.0]
    right = [chance.random() < value**2 for value in values]
    assert confidence.calibration_error(values, right, bins) == pytest.approx(plainly(values, right, bins))


@pytest.mark.parametrize(
    ("values", "right", "expected"),
    [
        ([0.9] * 10, [True] * 9 + [False], 0.0),
        ([1.0] * 4, [True, True, False, False], 0.5),
        ([0.95, 0.05], [False, True], 0.95),  # too confident in one bin, too little in another
        ([0.75, 0.85], [True, False], 0.55),  # 0.25 and 0.85, half each
    ],
)
def test_ece_by_hand(values, right, expected: float):
    assert confidence.calibration_error(values, right, 10) == pytest.approx(expected)


def test_without_answers_there_is_no_ece():
    assert math.isnan(confidence.calibration_error([], []))


def test_bins():
    found = confidence.binned([0.5, 0.5, 0.51, 1.0, 0.0], [True, False, True, True, False], 2)
    assert found["samples"].tolist() == [3, 2]
    assert found["confidence"].tolist() == pytest.approx([1 / 3, 0.755])
    assert found["right"].tolist() == pytest.approx([1 / 3, 1])


def test_both_pathways_of_every_task():
    some = samples(((0.9, 100.0), (0.5, 0.0)), ((0.7, 0.0), None))
    other = samples(((0.8, 49.0), None), task="u")
    frame = confidence.reliability(pd.concat([some, other])).frame.set_index(["task", "answers"])
    assert frame.index.tolist() == [
        ("t", "macro"), ("t", "micro"), ("u", "macro"), (tables.ALL, "macro"), (tables.ALL, "micro"),
    ]  # fmt: skip
    row = frame.loc[("t", "macro")]
    assert (row["samples"], row["right"]) == (2, 50)
    assert row["confidence"] == pytest.approx(80)
    assert row["too confident by"] == pytest.approx(30)
    assert row["ECE"] == pytest.approx((10 + 70) / 2)
    assert frame.loc[("t", "micro"), ["samples", "ECE"]].tolist() == pytest.approx([1, 50])
    assert frame.loc[("u", "macro"), "right"] == 0  # below half of the points


# Micro is more certain by 0.8, 0.3, -0.2 nats: macro is correct in the second, micro in the others.
THREE = (
    ((math.exp(-1.0), 0.0), (math.exp(-0.2), 100.0)),
    ((math.exp(-1.0), 100.0), (math.exp(-0.7), 0.0)),
    ((math.exp(-1.0), 0.0), (math.exp(-1.2), 100.0)),
    ((0.5, 100.0), None),
)


def test_scores_by_b():
    scores = confidence.scores_by_b(samples(*THREE), [-1.0, 0.0, 0.5, 1.0])
    assert scores.tolist() == pytest.approx([75, 50, 75, 50])


def test_the_table_of_b():
    (row,) = confidence.by_b(samples(*THREE), {"b": 0.9}).frame.to_dict("records")
    assert row["choice matters"] == 3
    assert (row["score, b = 0"], row["score, the run's b"], row["score, best b"]) == pytest.approx(
        (50, 50, 75)
    )
    assert row["oracle"] == 100
    assert row["best b"] == pytest.approx(0.55)
    table = confidence.by_b(samples(*THREE), {"rule": "logistic", "intercept": 1.0})
    assert "score, the run's b" not in table.frame
    assert confidence.by_b(samples(((0.5, 100.0), (0.6, 100.0)))).frame.empty


def test_b_of_0_is_what_eq_8_chose():
    chance = np.random.default_rng(0)
    rows = [
        ((c, 100.0 * (s > 0)), (d, 100.0 * (s < 0)))
        for c, d, s in chance.uniform(0.1, 1, (50, 3)) - [0, 0, 0.5]
    ]
    some = samples(*rows)
    chosen = some["macro"].where(some["nll_macro"] < some["nll_micro"], some["micro"])
    assert confidence.scores_by_b(some, [0.0])[0] == pytest.approx(chosen.mean())


def test_the_grid_shows_0_and_the_run_s_own_b():
    values = confidence.grid(samples(*THREE), 3.0)
    assert values[0] < -0.19
    assert values[-1] > 3.0
    assert len(values) == 401


def test_the_plots():
    some = samples(*THREE)
    curve = plots.by_b(some, 0.9)
    assert curve.startswith("<svg")
    assert "eq. 8, b = 0" in curve
    assert "this run, b = +0.90" in curve
    assert "this run" not in plots.by_b(some, None)
    assert plots.by_b(samples(((0.5, 100.0), None)), None) is None
    diagram = plots.reliability(samples(((0.5, 100.0), None)))
    assert "macro answers, ECE 50.0" in diagram
    assert "no micro answer" in diagram
