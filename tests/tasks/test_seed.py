"""df_seed_image: the image part of SEED-Bench, and replies in its nine dimensions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.tasks.common import options
from dualfocus_lmms.tasks.seed import docs as seed_docs

Load = Callable[[str], dict[Any, Any]]


def test_local_files(load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    task = load_task("df_seed_image")["df_seed_image"]
    towels, mood = docs = list(task.test_docs())  # neither the video nor the image that is missing
    assert towels[task.config.metadata["dualfocus"]["question"]] == "How many towels are in the image?"
    assert task.doc_to_text(towels) == (
        "How many towels are in the image?\nA. One\nB. Two\nC. Three\nD. Four\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert [task.doc_to_visual(doc)[0].size for doc in (towels, mood)] == [(60, 40)] * 2
    assert task.process_results(towels, ["A"]) == {
        "accuracy": 100.0,
        "instances_counting": 100.0,
        "questions_without_image": 1,
        "questions_fingerprint": questions_fingerprint(docs),
    }
    assert task.process_results(mood, ["A"])["scene_understanding"] == 0.0


def test_every_dimension_is_a_metric_and_no_metric_is_part_of_another(
    load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    metrics = load_task("df_seed_image")["df_seed_image"].aggregation()
    dimensions = {seed_docs.metric(name) for name in seed_docs.DIMENSIONS}
    assert len(dimensions) == 9
    assert set(metrics) == {"accuracy", "questions_without_image", "questions_fingerprint", *dimensions}
    assert [(name, other) for name in metrics for other in metrics if name != other and name in other] == []


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        # The correct one is C, "A cat and a dog". The first character alone often says something else.
        ("The answer is C.", True),
        ("Answer: C", True),
        ("A cat and a dog", True),
        ("a cat and a dog.", True),
        ("C. A cat and a dog", True),
        ("(C) a cat and a dog", True),
        ("c", True),
        ("C.", True),
        ("C:", True),
        ("(C", True),
        ("Option C", True),
        ("The correct answer is option C.", True),
        ("**C**", True),
        ("C\nThe picture shows both.", True),
        ("C. Both can be seen.", True),
        ("A", False),
        ("A cat", False),
        ("A. Cat", False),
        ("B", False),
        ("A dog", False),
        ("D", False),
        ("Neither", False),
        ("E", False),
        ("Cat", False),
        ("Cats", False),
        ("Can't tell", False),
        ("C or D", False),
        ("A, C", False),
        ("A cat and C", False),
        ("Both", False),
        ("", False),
        ("\n", False),
    ],
)
def test_replies(reply: str, correct: bool) -> None:
    doc = {
        "options": ["A cat", "A dog", "A cat and a dog", "Neither"],
        "answer": "C",
        "dimension": "Visual Reasoning",
        "questions_without_image": 0,
        "questions_fingerprint": "0123",
    }
    score = 100.0 if correct else 0.0
    assert seed_docs.results(doc, [reply]) == {
        "accuracy": score,
        "visual_reasoning": score,
        "questions_without_image": 0,
        "questions_fingerprint": "0123",
    }


def test_missing_images_are_counted_and_listed(choice_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        docs = seed_docs.read_questions(choice_folder)
    assert [doc["questions_without_image"] for doc in docs] == [1, 1]
    assert "102_202" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "E"},
        {"answer": None},
        {"choice_b": None},
        {"question": ""},
        {"question_type_id": 10},
        {"question_type_id": None},
        {"data_id": ["one", "two"]},
    ],
)
def test_an_invalid_question_raises(choice_folder: Path, change: dict[str, Any]) -> None:
    file = choice_folder / seed_docs.QUESTIONS
    content = json.loads(file.read_text(encoding="utf-8"))
    content["questions"][1] |= change
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"SEED-Bench\.json: question 1"):
        seed_docs.read_questions(choice_folder)


@pytest.mark.parametrize("content", ["3", '{"questions": 3}', "[1]", "{"])
def test_a_file_of_another_format_raises(choice_folder: Path, content: str) -> None:
    (choice_folder / seed_docs.QUESTIONS).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"SEED-Bench\.json"):
        seed_docs.read_questions(choice_folder)


def test_from_the_hub_only_images_are_asked_about(
    choice_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    rows = json.loads((choice_folder / seed_docs.QUESTIONS).read_text(encoding="utf-8"))["questions"]
    frames = [[Image.new("L", (width, 4))] * (1 + (width == 7)) for width in (5, 6, 7, 8)]
    hub = datasets.Dataset.from_list(rows)
    images = datasets.Dataset.from_dict(
        {"image": frames}, datasets.Features({"image": datasets.List(datasets.Image())})
    )
    docs = seed_docs.documents(datasets.concatenate_datasets([hub, images], axis=1))
    assert [doc["dimension"] for doc in docs] == [
        "Instances Counting",
        "Scene Understanding",
        "Text Understanding",
    ]
    assert [options.images(doc)[0].width for doc in docs] == [5, 6, 8]
