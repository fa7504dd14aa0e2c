"""Selection rules fitted to answers whose scores are known, and what they are worth on others. Knows no file.

Seeds are fixed: the same answers give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dualfocus_lmms.calibrated import FEATURES, Bias, Case, Feature, Logistic, features
from dualfocus_lmms.results import bias
from dualfocus_lmms.tasks.common.uncertainty import Interval

FOLDS = 10
RESAMPLES = 1000
SEED = 0

_NLL_MACRO, _NLL_MICRO = FEATURES.index("nll_macro"), FEATURES.index("nll_micro")

Rows = NDArray[np.bool_]  # (n,): which answers


@dataclass(frozen=True)
class Answers:
    """Two answers to each of n samples, and what they are worth.

    inputs: (n, features), see `calibrated.features`; nan without a micro answer. macro, micro: (n,) scores, 0
    to 100; macro's stands for micro where there is none. questions: (n,) the number of the question of each
    sample.
    """

    inputs: NDArray[np.float64]
    macro: NDArray[np.float64]
    micro: NDArray[np.float64]
    questions: NDArray[np.int64]

    @property
    def gains(self) -> NDArray[np.float64]:
        """(n,): of choosing micro."""
        return self.micro - self.macro

    @cached_property
    def advantage(self) -> NDArray[np.float64]:
        """(n,): see `bias`."""
        return self.inputs[:, _NLL_MACRO] - self.inputs[:, _NLL_MICRO]


def inputs_of(case: Case | None) -> list[float]:
    """(features,): a row of `Answers.inputs`. None: there is no micro answer."""
    if case is None:
        return [np.nan] * len(FEATURES)
    found = features(case)
    return [found[name] for name in FEATURES]


Choice = Bias | Logistic
Fit = Callable[[Answers, Rows], Choice | None]


def fit_bias(answers: Answers, rows: Rows) -> Bias | None:
    """The b with the highest score on these rows; None where no choice matters there."""
    b = bias.best(answers.advantage[rows], answers.gains[rows])
    return None if np.isnan(b) else Bias(b)


def fit_logistic(answers: Answers, rows: Rows) -> Logistic | None:
    """Logistic regression, with scikit-learn's own penalty, of which answer is worth more, on the rows where
    one is, weighted by how much more; None where it is always the same pathway."""
    from sklearn.linear_model import LogisticRegression

    matters = rows & (answers.gains != 0)
    values, gains = answers.inputs[matters], answers.gains[matters]
    if not (gains > 0).any() or not (gains < 0).any():
        return None
    means, scales = values.mean(axis=0), values.std(axis=0)
    scales[scales <= 1e-9 * np.abs(means)] = 1.0  # always the same, but for rounding
    scales[scales == 0] = 1.0
    model = LogisticRegression(max_iter=1000)
    model.fit((values - means) / scales, gains > 0, sample_weight=np.abs(gains) / 100)
    weighed = zip(FEATURES, means, scales, model.coef_[0], strict=True)
    return Logistic(
        float(model.intercept_[0]),
        {name: Feature(float(mean), float(scale), float(weight)) for name, mean, scale, weight in weighed},
    )


def scores(answers: Answers, choice: Choice, rows: Rows | None = None) -> NDArray[np.float64]:
    """(n,) or (rows,): the scores of what a rule chooses."""
    chosen = slice(None) if rows is None else rows
    micro = _chooses_micro(choice, answers.inputs[chosen])
    return np.where(micro, answers.micro[chosen], answers.macro[chosen])


def _chooses_micro(choice: Choice, inputs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(n,): where micro wins, as `choice.compare` says it of one sample."""
    macro, micro = choice.costs(dict(zip(FEATURES, inputs.T, strict=True)))
    return ~(macro < micro)


def held_out_scores(fit: Fit, answers: Answers, folds: int = FOLDS) -> NDArray[np.float64] | None:
    """(n,): the score of each sample by the rule that was fitted on the other folds.

    All samples of a question are in one fold. None where there are fewer than two questions, or a fold leaves
    nothing to fit on.
    """
    fold = fold_of(answers.questions, folds)
    found = np.empty(len(answers.inputs))
    if fold.max(initial=0) == 0:
        return None
    for number in range(fold.max() + 1):
        choice = fit(answers, fold != number)
        if choice is None:
            return None
        found[fold == number] = scores(answers, choice, fold == number)
    return found


def fold_of(questions: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """(n,): the fold of each sample, from 0 on: questions shuffled and dealt out."""
    known, places = np.unique(questions, return_inverse=True)
    dealt = np.random.default_rng(SEED).permutation(len(known)) % folds
    return dealt[places]


def b_interval(answers: Answers, resamples: int = RESAMPLES) -> Interval:
    """The 95% interval of the best b: the quantiles of those of questions drawn again (bootstrap)."""
    known, places = np.unique(answers.questions, return_inverse=True)
    random = np.random.default_rng(SEED)
    steps = bias.Steps(answers.advantage, answers.gains)
    drawn = [
        steps.best(random.multinomial(len(known), np.full(len(known), 1 / len(known)))[places])
        for _ in range(resamples)
    ]
    return Interval(*(float(value) for value in np.nanquantile(drawn, (0.025, 0.975))))
