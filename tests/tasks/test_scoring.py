"""Reading replies, and the metrics on small tables and on LLaVA's own answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms.tasks.common import scoring

OPTIONS = ["a cat", "a dog", "vitamin C", "a tree"]
NO_DOC = {"answer": "no", "questions_without_image": 2, "questions_fingerprint": "0123"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Yes.", "yes"),
        ("yes", "yes"),
        ("No", "no"),
        ("no", "no"),
        ("No.", "no"),
        ("No, there is not.", "no"),
        ("No, it is a dog.", "no"),  # its only negative word has the comma
        ("Well,no", "yes"),  # the official evaluator drops the comma: Wellno
        ("There is not a dog.", "no"),
        ("", "yes"),
        # What the official evaluator does with unusual replies, kept on purpose.
        ("NO", "yes"),
        ("Not at all", "yes"),
        ("Nothing", "yes"),
        ("No!", "yes"),
        ("No\nthere is none", "yes"),
        ("Yes. There is no doubt", "yes"),
        ("There isn't", "yes"),
    ],
)
def test_read_yes_no(reply: str, read: str) -> None:
    assert scoring.read_yes_no(reply) == read


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ("yynn", "ynyn", (50.0, 50.0, 50.0)),
        ("yyyn", "ynnn", (100.0, 100 / 3, 50.0)),
        ("yynn", "nnnn", (0.0, 0.0, 0.0)),
        ("nnnn", "yyyy", (0.0, 0.0, 0.0)),
        ("yy", "yy", (100.0, 100.0, 100.0)),
    ],
)
def test_precision_recall_f1(labels: str, predictions: str, expected: tuple[float, float, float]) -> None:
    pairs = pairs_of(labels, predictions)
    found = scoring.precision(pairs), scoring.recall(pairs), scoring.f1(pairs)
    assert found == pytest.approx(expected)


def test_yes_ratio_counts_predictions_not_labels() -> None:
    metrics = scoring.pope_results(NO_DOC, ["Yes."])
    assert (metrics["accuracy"], metrics["yes_ratio"], metrics["questions_without_image"]) == (0.0, 100.0, 2)
    assert metrics["questions_fingerprint"] == "0123"


@pytest.mark.parametrize(("label", "prediction"), [("no", "yes"), ("yes", "no")])
def test_no_answer_is_wrong_whatever_the_label(label: str, prediction: str) -> None:
    metrics = scoring.pope_results({**NO_DOC, "answer": label}, [scoring.NO_ANSWER])
    assert metrics["accuracy"] == 0.0
    assert metrics["f1"] == {"label": label, "prediction": prediction}


def pairs_of(labels: str, predictions: str) -> list[scoring.Pair]:
    words = {"y": "yes", "n": "no"}
    return [
        scoring.Pair(label=words[label], prediction=words[prediction])  # type: ignore[typeddict-item]
        for label, prediction in zip(labels, predictions, strict=True)
    ]


def test_errors_of_precision_recall_and_f1_by_the_delta_method() -> None:
    """40 hits, 10 false yes, 20 missed, 30 true no: precision is a mean of 50, recall of 60."""
    pairs = pairs_of("y" * 40 + "n" * 10 + "y" * 20 + "n" * 30, "y" * 50 + "n" * 50) * 5
    assert scoring.precision_error(pairs) == pytest.approx(100 * math.sqrt(0.8 * 0.2 / 250), rel=0.08)
    assert scoring.recall_error(pairs) == pytest.approx(100 * math.sqrt(2 / 3 / 3 / 300), rel=0.08)
    # F1 = 2h / (p + t): influence (2 hit - F1 (predicted + true)) / mean(p + t), F1 = 8 / 11, mean 1.1.
    influences = [(2 - 16 / 11) / 1.1] * 40 + [-8 / 11 / 1.1] * 30 + [0.0] * 30
    expected = 100 * math.sqrt(sum(value**2 for value in influences) / 100 / 500)
    assert scoring.f1_error(pairs) == pytest.approx(expected, rel=0.08)
    assert scoring.f1_error(pairs) == scoring.f1_error(pairs[::-1])


def test_errors_at_the_edges() -> None:
    errors = (scoring.precision_error, scoring.recall_error, scoring.f1_error)
    assert [error(pairs_of("yy", "yy")) for error in errors] == [0.0, 0.0, 0.0]
    assert [error(pairs_of("nn", "nn")) for error in errors] == [0.0, 0.0, 0.0]
    assert [error(pairs_of("y", "y")) for error in errors] == ["N/A"] * 3


def test_llava_answers_give_the_published_f1(shared_data: Path) -> None:
    """LLaVA-1.5-13B's released answers; the random split is the first version, of 2,910 questions."""
    folder = shared_data / "data" / "llava_eval" / "pope"
    category = {row["question_id"]: row["category"] for row in read_lines(folder / "llava_pope_test.jsonl")}
    answers = read_lines(folder / "answers_llava-v1.5-13b.jsonl")
    found = {}
    for split in ("random", "popular", "adversarial"):
        labels = read_lines(shared_data / "data" / "pope" / "e3e3926" / f"coco_pope_{split}.json")
        replies = [row["text"] for row in answers if category[row["question_id"]] == split]
        docs = [{**NO_DOC, "answer": row["label"]} for row in labels]
        rows = [scoring.pope_results(doc, [reply]) for doc, reply in zip(docs, replies, strict=True)]
        found[split] = scoring.f1([row["f1"] for row in rows])
    assert found == pytest.approx({"random": 87.14, "popular": 86.25, "adversarial": 84.46}, abs=0.005)
    assert sum(found.values()) / 3 == pytest.approx(85.95, abs=0.005)


@pytest.mark.parametrize(
    ("reply", "correct"),
    [("Red.", True), ("dark red", True), ("red car", False), ("", False), (".", False), ("darkred", False)],
)
def test_is_accepted(reply: str, correct: bool) -> None:
    assert scoring.is_accepted(reply, ["red", "Dark Red"]) is correct


@pytest.mark.parametrize(
    ("options", "answers", "reply", "accuracy"),
    [
        ([], ["red", "crimson"], "Crimson.", 100.0),
        ([], ["red"], "B", 0.0),
        (OPTIONS, ["B"], "The answer is B.", 100.0),
        (OPTIONS, ["B", "C"], "vitamin c", 100.0),
        (OPTIONS, ["B"], "A or B", 0.0),
    ],
)
def test_answer_results(options: list[str], answers: list[str], reply: str, accuracy: float) -> None:
    assert scoring.answer_results({"options": options, "answers": answers}, [reply]) == {"accuracy": accuracy}
