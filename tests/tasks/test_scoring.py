"""Reading replies, and the metrics on small tables and on LLaVA's own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms.tasks import scoring

OPTIONS = ["a cat", "a dog", "vitamin C", "a tree"]


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
    words = {"y": "yes", "n": "no"}
    pairs = [
        scoring.Pair(label=words[label], prediction=words[prediction])  # type: ignore[typeddict-item]
        for label, prediction in zip(labels, predictions, strict=True)
    ]
    found = scoring.precision(pairs), scoring.recall(pairs), scoring.f1(pairs)
    assert found == pytest.approx(expected)


def test_yes_ratio_counts_predictions_not_labels() -> None:
    doc = {"answer": "no", "questions_without_image": 2}
    metrics = scoring.pope_results(doc, ["Yes."])
    assert (metrics["accuracy"], metrics["yes_ratio"], metrics["questions_without_image"]) == (0.0, 100.0, 2)


def test_llava_answers_give_the_published_f1(shared_data: Path) -> None:
    """LLaVA-1.5-13B's released answers; the random split is the first version, of 2,910 questions."""
    folder = shared_data / "data" / "llava_eval" / "pope"
    category = {row["question_id"]: row["category"] for row in read_lines(folder / "llava_pope_test.jsonl")}
    answers = read_lines(folder / "answers_llava-v1.5-13b.jsonl")
    found = {}
    for split in ("random", "popular", "adversarial"):
        labels = read_lines(shared_data / "data" / "pope" / "e3e3926" / f"coco_pope_{split}.json")
        replies = [row["text"] for row in answers if category[row["question_id"]] == split]
        docs = [{"answer": row["label"], "questions_without_image": 0} for row in labels]
        rows = [scoring.pope_results(doc, [reply]) for doc, reply in zip(docs, replies, strict=True)]
        found[split] = scoring.f1([row["f1"] for row in rows])
    assert found == pytest.approx({"random": 87.14, "popular": 86.25, "adversarial": 84.46}, abs=0.005)
    assert sum(found.values()) / 3 == pytest.approx(85.95, abs=0.005)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Yes.", "yes"),
        ("  A   Red car! ", "a red car"),
        ("'stop'", "stop"),
        ("(left)", "left"),
        ("**Blue**", "blue"),
        ("\u201cStop\u201d", "stop"),
        ("red, white", "red white"),
        ("t-shirt", "t-shirt"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("-5", "-5"),
        ("U.S.", "u.s"),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert scoring.normalise(text) == normal


@pytest.mark.parametrize(
    ("reply", "right"),
    [("Red.", True), ("dark red", True), ("red car", False), ("", False), (".", False), ("darkred", False)],
)
def test_is_accepted(reply: str, right: bool) -> None:
    assert scoring.is_accepted(reply, ["red", "Dark Red"]) is right


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(D)", "D"),
        ("**C**", "C"),
        ("The answer is B.", "B"),
        ("The answer is: (b)", "B"),
        ("Answer: C", "C"),
        ("Answer: C\nIt is a pill.", "C"),
        ("Option D", "D"),
        ("The correct answer is option C.", "C"),
        ("B. a dog", "B"),
        ("b. a dog", "B"),
        ("(B) A dog.", "B"),
        ("B. Because it barks.", "B"),
        ("C. Vitamin C", "C"),
        # The option's own text.
        ("a dog", "B"),
        ("A dog.", "B"),
        ("The answer is vitamin C.", "C"),
        ("vitamin C", "C"),
        # Two letters.
        ("A and B", None),
        ("A or B.", None),
        ("A, B", None),
        ("a, b", None),
        ("(A)(B)", None),
        ("A. No, the answer is B.", None),
        # None.
        ("", None),
        ("E", None),
        ("none of these", None),
        ("A bird", None),
        ("The answer is not B.", None),
        ("Option A is wrong.", None),
        ("b. because it barks", None),
    ],
)
def test_read_letter(reply: str, letter: str | None) -> None:
    assert scoring.read_letter(reply, OPTIONS) == letter


def test_a_letter_names_an_option_even_where_options_are_letters() -> None:
    assert scoring.read_letter("B", ["B", "A"]) == "B"
    assert scoring.read_letter("K", ["K", "M"]) == "A"


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
