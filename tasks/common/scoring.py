"""Reading replies and counting them: pure functions on texts, all scores in percent (0 to 100).

A reply that is correct scores 100 and a wrong one 0, so the host's own mean and its standard error are in
percent as well, the way papers print them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from dualfocus_lmms.integrity import FINGERPRINT
from dualfocus_lmms.tasks.common.letters import normalise, read_letter
from dualfocus_lmms.tasks.common.uncertainty import Statistic, bootstrap_error

YesNo = Literal["yes", "no"]
Value = TypeVar("Value", int, str)


class NoAnswer(str):
    """The reply to a question that was not answered: empty, and wrong even where an empty reply means yes."""


NO_ANSWER = NoAnswer()


class Pair(TypedDict):
    """A yes/no question's answer, and the prediction."""

    label: YesNo
    prediction: YesNo


# --- yes or no ---------------------------------------------------------------------------------------------


def read_yes_no(reply: str) -> YesNo:
    """What POPE's official evaluator (and LLaVA's eval_pope.py) reads in a reply.

    Only what stands before the first "." counts, commas are dropped, and words are what single blanks
    separate: "No", "no" or "not" among them is no, all else is yes, an empty reply included.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def precision(pairs: Sequence[Pair]) -> float:
    """Share of the predicted yes that are correct; 0 when yes was never predicted."""
    return _share(_hits(pairs), sum(pair["prediction"] == "yes" for pair in pairs))


def recall(pairs: Sequence[Pair]) -> float:
    """Share of the true yes that were predicted; 0 when no label is yes."""
    return _share(_hits(pairs), sum(pair["label"] == "yes" for pair in pairs))


def f1(pairs: Sequence[Pair]) -> float:
    """Harmonic mean of precision and recall; 0 when both are 0."""
    found, complete = precision(pairs), recall(pairs)
    return 2 * found * complete / (found + complete) if found + complete else 0.0


def _hits(pairs: Sequence[Pair]) -> int:
    return sum(pair["label"] == pair["prediction"] == "yes" for pair in pairs)


def _share(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else 0.0


# The host gives standard errors to means alone. The value of a metric <name>_stderr after <name> is
# shown as the standard error of <name>.


def precision_error(pairs: Sequence[Pair]) -> float | str:
    """The standard error of `precision`, drawn by question; "N/A", the host's word, for a single question."""
    return _bootstrap(pairs, lambda means: _ratio(means[:, 0], means[:, 1]))


def recall_error(pairs: Sequence[Pair]) -> float | str:
    """The standard error of `recall`, as `precision_error`."""
    return _bootstrap(pairs, lambda means: _ratio(means[:, 0], means[:, 2]))


def f1_error(pairs: Sequence[Pair]) -> float | str:
    """The standard error of `f1`, as `precision_error`."""
    return _bootstrap(pairs, f1_of)


def f1_of(means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(draws,): `f1` of the means of `counts`, (draws, 3)."""
    return _ratio(2 * means[:, 0], means[:, 1] + means[:, 2])


def _bootstrap(pairs: Sequence[Pair], statistic: Statistic) -> float | str:
    error = bootstrap_error(counts(pairs), statistic)
    return "N/A" if isnan(error) else error


def counts(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """(pairs, 3): whether it is a hit, a predicted yes, a true yes. The scores are ratios of the means."""
    predicted = np.array([pair["prediction"] == "yes" for pair in pairs])
    true = np.array([pair["label"] == "yes" for pair in pairs])
    return np.stack([predicted & true, predicted, true], axis=1).astype(float)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """In percent; 0 where the whole is 0, as the scores themselves."""
    return 100 * np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def pope_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """One reply's contribution to each metric of df_pope_*. NO_ANSWER counts as a wrong answer."""
    # Every label that is not "no" counts as yes, as in the official evaluator; local files hold nothing else.
    label: YesNo = "no" if doc["answer"].strip().lower() == "no" else "yes"
    wrong: YesNo = "yes" if label == "no" else "no"
    prediction = wrong if isinstance(results[0], NoAnswer) else read_yes_no(results[0])
    pair = Pair(label=label, prediction=prediction)
    metrics = ("precision", "recall", "f1")
    return {
        "accuracy": _score(prediction == label),
        **dict.fromkeys(metrics, pair),
        **dict.fromkeys((f"{metric}_stderr" for metric in metrics), pair),
        "yes_ratio": _score(prediction == "yes"),
        "questions_without_image": doc["questions_without_image"],
        FINGERPRINT: doc[FINGERPRINT],
    }


def same(values: Sequence[Value]) -> Value:
    """The value that every document of a split repeats."""
    return max(values)


def total(counts: Sequence[int], sizes: Sequence[int], weight_by_size: bool) -> int:
    """The sum over a group's tasks; the other arguments are the host's and mean nothing here."""
    return sum(counts)


# --- short answers -----------------------------------------------------------------------------------------


def is_accepted(reply: str, answers: Sequence[str]) -> bool:
    """Whether the whole reply is one of the accepted answers, both normalised. An empty reply never is."""
    given = normalise(reply)
    return bool(given) and given in {normalise(answer) for answer in answers}


def answer_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a reply is correct. doc["answers"]: accepted texts, or letters with doc["options"]."""
    reply, options, answers = results[0], doc.get("options"), doc["answers"]
    correct = read_letter(reply, options) in answers if options else is_accepted(reply, answers)
    return {"accuracy": _score(correct)}


def _score(correct: bool) -> float:
    return 100.0 if correct else 0.0
