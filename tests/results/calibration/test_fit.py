"""Rules fitted to answers that were made up so that one knows what is to be found."""

from __future__ import annotations

import numpy as np
import pytest

from dualfocus_lmms import Answer
from dualfocus_lmms.boxes import Box
from dualfocus_lmms.calibrated import Bias, Case
from dualfocus_lmms.results.calibration import fit


def case(macro: float, micro: float, area: float = 0.25) -> Case:
    """Answers of these ln PPL, and a box of this share of the image."""
    answers = (Answer(way, way, (1,), (-nll,), False) for way, nll in (("macro", macro), ("micro", micro)))
    return Case(*answers, Box(0.0, 0.0, area, 1.0), False)


def made_cases(count: int, bias: float, by_area: float = 0.0, seed: int = 0) -> tuple[list[Case], np.ndarray]:
    """Micro is the correct one where it is more certain by `bias`, less `by_area` times the box's share,
    and a bit of chance."""
    chance = np.random.default_rng(seed)
    macro, micro, area = chance.exponential(1, count), chance.exponential(1, count), chance.random(count)
    wins = macro - micro - bias + by_area * area + chance.normal(0, 0.1, count) > 0
    return [case(*row) for row in zip(macro, micro, area, strict=True)], wins


def made(count: int, bias: float, by_area: float = 0.0, seed: int = 0) -> fit.Answers:
    """See `made_cases`; two samples a question."""
    cases, wins = made_cases(count, bias, by_area, seed)
    scores = np.where(wins, 0.0, 100.0), np.where(wins, 100.0, 0.0)
    return fit.Answers(np.array([fit.inputs_of(case) for case in cases]), *scores, np.arange(count) // 2)


def everything(answers: fit.Answers) -> np.ndarray:
    return np.ones(len(answers.inputs), dtype=bool)


def test_b_is_found_again_and_lies_in_its_interval():
    answers = made(600, bias=0.7)
    b = fit.fit_bias(answers, everything(answers)).b
    low, high = fit.b_interval(answers, 200)
    assert b == pytest.approx(0.7, abs=0.1)
    assert low <= b <= high
    assert 0 < high - low < 0.4
    assert fit.b_interval(answers, 200) == (low, high)  # the seed is fixed


def test_what_is_fitted_is_worth_it_on_questions_that_were_held_out():
    answers = made(600, bias=0.7)
    plain, held_out = fit.scores(answers, Bias(0.0)), fit.held_out_scores(fit.fit_bias, answers)
    fitted = fit.scores(answers, fit.fit_bias(answers, everything(answers)))
    assert plain.mean() < held_out.mean() <= fitted.mean() <= 100
    assert held_out.mean() - plain.mean() > 10


def test_a_held_out_fold_is_chosen_by_the_rule_of_the_others():
    answers = made(40, bias=0.7)
    folds, found = fit.fold_of(answers.questions, 4), fit.held_out_scores(fit.fit_bias, answers, 4)
    for number in range(4):
        rule = fit.fit_bias(answers, folds != number)
        assert found[folds == number].tolist() == fit.scores(answers, rule)[folds == number].tolist()


def test_a_question_is_in_one_fold_and_folds_are_alike():
    questions = np.repeat(np.arange(50), 4)
    folds = fit.fold_of(questions, 10)
    assert all(len(set(folds[questions == number])) == 1 for number in range(50))
    assert np.bincount(folds).tolist() == [20] * 10
    assert sorted(fit.fold_of(np.arange(3), 10)) == [0, 1, 2]


def test_the_logistic_rule_uses_what_b_cannot():
    answers = made(600, bias=0.7, by_area=1.4)
    biased, weighed = (fit.held_out_scores(one, answers).mean() for one in (fit.fit_bias, fit.fit_logistic))
    assert weighed > biased + 3
    weights = {
        name: one.weight for name, one in fit.fit_logistic(answers, everything(answers)).features.items()
    }
    assert weights["nll_macro"] > 0.5 > 0 > weights["nll_micro"]
    assert weights["area"] > 0.5
    assert [weights[name] for name in ("tokens_macro", "tokens_micro", "agreement")] == pytest.approx([0] * 3)


def test_the_logistic_rule_is_that_of_its_library():
    """The probabilities of scikit-learn's own pipeline."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    answers, cases = made(200, bias=0.4, by_area=0.5), made_cases(200, bias=0.4, by_area=0.5)[0]
    rule = fit.fit_logistic(answers, everything(answers))
    library = make_pipeline(StandardScaler(), LogisticRegression()).fit(answers.inputs, answers.gains > 0)
    micro = [np.exp(-rule.compare(one)[1]) for one in cases]
    assert micro == pytest.approx(library.predict_proba(answers.inputs)[:, 1], abs=1e-3)


@pytest.mark.parametrize("fitted", [fit.fit_bias, fit.fit_logistic])
def test_all_samples_at_once_are_chosen_as_one_by_one(fitted: fit.Fit):
    answers, cases = made(200, bias=0.4, by_area=0.5), made_cases(200, bias=0.4, by_area=0.5)[0]
    rule = fitted(answers, everything(answers))
    pairs = [rule.compare(one) for one in cases]
    plainly = np.where([macro < micro for macro, micro in pairs], answers.macro, answers.micro)
    assert 0 < (plainly == answers.macro).mean() < 1
    assert fit.scores(answers, rule).tolist() == plainly.tolist()


def test_what_is_worth_more_weighs_more():
    cases = [case(1.0, 0.5), case(1.0, 0.5), case(1.0, 0.5)]
    macro, micro = np.array([100.0, 30.0, 30.0]), np.array([0.0, 60.0, 60.0])
    answers = fit.Answers(np.array([fit.inputs_of(case) for case in cases]), macro, micro, np.arange(3))
    assert fit.scores(answers, fit.fit_logistic(answers, everything(answers))).tolist() == macro.tolist()


def test_what_cannot_be_had():
    answers = made(20, bias=0.5)
    same = fit.Answers(answers.inputs, answers.macro, answers.macro, answers.questions)
    assert fit.fit_bias(same, everything(same)) is None
    assert fit.fit_logistic(same, everything(same)) is None
    assert fit.held_out_scores(fit.fit_bias, same) is None
    better = fit.Answers(answers.inputs, np.zeros(20), np.full(20, 100.0), answers.questions)
    assert fit.fit_logistic(better, everything(better)) is None
    assert fit.fit_bias(better, everything(better)).b <= min(better.advantage)
    one = fit.Answers(answers.inputs, answers.macro, answers.micro, np.zeros(20, dtype=int))
    assert fit.held_out_scores(fit.fit_bias, one) is None


def test_without_a_second_look_it_is_macro():
    answers = fit.Answers(
        np.array([fit.inputs_of(None), fit.inputs_of(case(1.0, 0.1))]),
        np.array([100.0, 0.0]),
        np.array([100.0, 100.0]),
        np.arange(2),
    )
    assert np.isnan(answers.advantage[0])
    assert np.isnan(answers.inputs[0]).all()
    assert fit.scores(answers, Bias(0.0)).tolist() == [100, 100]
    assert fit.scores(answers, Bias(2.0)).tolist() == [100, 0]
