"""What a training run measures on held-out samples."""

from __future__ import annotations

from typing import Any

import pytest

from dualfocus_lmms.train.trainer.evaluation import Scored, same_answer, summary


def scored(*rows: Any) -> list[Scored]:
    return [Scored(*row) for row in rows]


def test_the_figures_of_an_evaluation():
    rows = scored((0.6, True, False, True), (0.0, False, True, True), (0.5, False, False, False))
    assert summary(rows) == pytest.approx(
        {"box_iou": 1.1 / 3, "box_half": 1 / 3, "macro": 1 / 3, "micro": 1 / 3, "selected": 2 / 3}
    )
    assert summary(scored((None, True, False, True))) == {"macro": 1, "micro": 0, "selected": 1}
    assert summary([]) == {}


@pytest.mark.parametrize(
    ("said", "true", "same"),
    [
        ("Yes.", "yes", True),
        (" dark  blue ", "Dark blue", True),
        ("yes", "no", False),
        ("", "no", False),
        ("7", "7.", True),
        ("Nope", "no", False),
    ],
)
def test_answers_are_the_same_but_for_case_blanks_and_a_full_stop(said, true, same):
    assert same_answer(said, true) is same
