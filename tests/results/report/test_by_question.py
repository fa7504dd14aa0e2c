"""Questions that are asked several times, with their options in other orders, count once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dualfocus_lmms.results.report import accuracy, by_question, comparison, tables

QUESTIONS, ORDERS = 200, 4


def rotated(
    random: np.random.Generator, questions: int = QUESTIONS, changed: float = 0.15
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two runs that are equally good. A question that changes does so in most of its orders."""
    asked = np.repeat(np.arange(questions), ORDERS)
    base = random.random(questions) < 0.6
    differs = (random.random(questions) < changed)[asked] & (random.random(len(asked)) < 0.9)
    better = random.random(questions) < 0.5
    answers = [np.where(differs, side[asked], base[asked]) for side in (better, ~better)]
    one, two = (
        pd.DataFrame(
            {
                "task": "df_hrbench_4k",
                "doc_id": range(len(asked)),
                "question_key": asked.astype(str),
                "macro": 100.0 * answers[0],
                "micro": 100.0 * answers[1],
                "selected": 100.0 * chosen,
                "oracle": 100.0 * (answers[0] | answers[1]),
                "nll_macro": 0.1,
                "nll_micro": 0.2,
            }
        )
        for chosen in answers
    )
    return one, two


def test_runs_that_are_equally_good_rarely_seem_to_differ() -> None:
    """By sample, a third of such comparisons have p below 0.05 and an interval without 0."""
    random = np.random.default_rng(0)
    found = [comparison.against(*rotated(random)) for _ in range(200)]
    assert sum(one["p"] < 0.05 for one in found) <= 20  # 5% and three standard errors
    assert sum(not one["low"] <= 0 <= one["high"] for one in found) <= 20


def test_every_table_counts_questions() -> None:
    """Four orders that always agree say as much as one."""
    once, _ = rotated(np.random.default_rng(1), changed=0)
    once = once.drop_duplicates("question_key")
    once = once.assign(selected=once["macro"].sample(frac=1, random_state=0).to_numpy())
    often = once.loc[once.index.repeat(ORDERS)].assign(doc_id=range(len(once) * ORDERS))
    once, often = (some.assign(pathway="micro", micro=some["selected"]) for some in (once, often))
    for table in (tables.ablation, accuracy.right_answers):
        one, four = (table(some).frame for some in (once, often))
        assert four["samples"].tolist() == [len(often)] * len(four)
        assert four["questions"].tolist() == one["questions"].tolist() == [len(once)] * len(one)
        intervals = [name for name in one if "low" in name or "high" in name]
        np.testing.assert_allclose(one[intervals], four[intervals], atol=0.4)  # one is by resampling
        assert four["p"].tolist() == pytest.approx(one["p"].tolist(), nan_ok=True)
    one, four = (
        comparison.by_run(
            {"base": some.assign(selected=some["macro"]), "now": some}, {"base": {}, "now": {}}
        ).frame
        for some in (once, often)
    )
    assert four["questions"].tolist() == [QUESTIONS] * 2
    assert four["p"].iloc[1] == one["p"].iloc[1]


def test_the_same_key_in_two_tasks_is_two_questions() -> None:
    keys = pd.DataFrame({"task": ["a", "a", "b"], "question_key": ["0", "0", "0"]})
    assert by_question.questions(keys).tolist() == [0, 0, 1]
    assert by_question.count(keys) == 2


def test_shares_of_answers_that_all_agree() -> None:
    """Without an error to go by, as many answers count as there are questions."""
    all_right = by_question.share_interval(np.ones(40), np.repeat(range(10), 4))
    assert all_right == pytest.approx(by_question.share_interval(np.ones(10), range(10)))
    single = by_question.share_interval([True, True, False, False], [7, 7, 7, 7])
    assert single.high - single.low > 60
