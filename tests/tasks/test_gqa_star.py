"""df_gqa_star: the published file with GQA's own answers, and replies against them."""

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
from dualfocus_lmms.tasks.gqa import docs as gqa_docs
from dualfocus_lmms.tasks.gqa_star import docs as gqa_star_docs

Load = Callable[[str], dict[Any, Any]]
OPTIONS = ["dark blue", "red", "Yes", "t-shirt"]


def test_local_files(load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    task = load_task("df_gqa_star")["df_gqa_star"]
    bus, sky = docs = list(task.test_docs())
    assert bus[task.config.metadata["dualfocus"]["question"]] == "What color is the bus?"
    assert task.doc_to_text(bus) == (
        "What color is the bus?\nA. blue\nB. red\nC. green\nD. white\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (bus["options"], bus["answer"], bus["source"]) == (
        ["blue", "red", "green", "white"],
        "red",
        "published",
    )
    assert task.doc_to_visual(bus)[0].size == (60, 40)
    assert task.process_results(bus, ["B"]) == {
        "accuracy": 100.0,
        "structural_query": 100.0,
        "semantic_attr": 100.0,
        "questions_without_image": 1,
        "questions_fingerprint": questions_fingerprint(docs),
    }
    assert task.process_results(sky, ["A"])["structural_verify"] == 0.0


def test_every_type_is_a_metric_and_no_metric_is_part_of_another(
    load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    metrics = load_task("df_gqa_star")["df_gqa_star"].aggregation()
    of_types = {f"{kind}_{name}" for kind, names in gqa_docs.TYPES.items() for name in names}
    assert set(metrics) == {"accuracy", "questions_without_image", "questions_fingerprint", *of_types}
    assert [(name, other) for name in metrics for other in metrics if name != other and name in other] == []


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        # Awkward ones first. The answer is "red", option B.
        ("The answer is B.", True),
        ("Answer: B", True),
        ("b. red", True),
        ("(B) Red", True),
        ("**B**", True),
        ("B. Because it is red.", True),
        ("Red.", True),
        ("RED", True),
        (" red ", True),
        ("The answer is red.", True),
        ("red..", True),
        ("A red bus", False),
        ("red bus", False),
        ("dark red", False),
        ("It is red", False),
        ("A or B", False),
        ("B, D", False),
        ("A. dark blue, not B", False),
        ("A. red", False),
        ("A", False),
        ("dark blue", False),
        ("C", False),
        ("D", False),
        ("E", False),
        ("yes", False),
        ("", False),
        (".", False),
        ("I do not know.", False),
        ("reddish", False),
        ("B", True),
        ("b", True),
        ("B)", True),
    ],
)
def test_replies(reply: str, correct: bool) -> None:
    assert gqa_star_docs.is_correct(reply, OPTIONS, "red") is correct


@pytest.mark.parametrize(
    ("reply", "answer", "correct"),
    [
        ("C", "yes", True),  # the options' capitals do not count
        ("D", "t-shirt", True),
        ("tshirt", "t-shirt", False),
        ("green", "green", True),  # none of the options, and yet GQA's answer
        ("Green.", "green", True),
        ("A", "green", False),
    ],
)
def test_answers(reply: str, answer: str, correct: bool) -> None:
    assert gqa_star_docs.is_correct(reply, OPTIONS, answer) is correct


def test_missing_images_are_counted_and_listed(choice_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        docs = gqa_star_docs.read_questions(choice_folder)
    assert [doc["questions_without_image"] for doc in docs] == [1, 1]
    assert "n2.jpg" in caplog.text


def test_without_gqa_s_own_file_each_line_needs_its_answer(
    choice_folder: Path, write_lines: Callable[..., Path]
) -> None:
    (choice_folder / gqa_docs.QUESTIONS).unlink()
    with pytest.raises(UserError, match=r"mcq\.jsonl:1"):
        gqa_star_docs.read_questions(choice_folder)
    row = {"question_id": "1", "image": "n1.jpg", "question": "Is it?\nA. yes\nB. no", "source": "mine"}
    rows = [{**row, "answer": "no"}, {**row, "answer": "B"}]
    write_lines(choice_folder / gqa_star_docs.CHOICES, rows)
    docs = gqa_star_docs.read_questions(choice_folder)
    assert [(doc["answer"], doc["structural"], doc["source"]) for doc in docs] == [("no", None, "mine")] * 2
    kept = {"questions_without_image": 0, "questions_fingerprint": "0123"}
    assert gqa_star_docs.results({**docs[0], **kept}, ["B"]) == {"accuracy": 100.0, **kept}


@pytest.mark.parametrize("question", ["", "Is it overcast?", None, 3])
def test_an_invalid_line_raises(
    choice_folder: Path, write_lines: Callable[..., Path], question: object
) -> None:
    write_lines(
        choice_folder / gqa_star_docs.CHOICES,
        [{"question_id": "1", "image": "n1.jpg", "question": question}],
    )
    with pytest.raises(UserError, match=r"mcq\.jsonl:1"):
        gqa_star_docs.read_questions(choice_folder)


def test_from_the_hub_answers_and_images_come_from_gqa_s_own_data_set(
    choice_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    official = json.loads((choice_folder / gqa_docs.QUESTIONS).read_text(encoding="utf-8"))
    images = datasets.Dataset.from_dict(
        {"id": ["n2", "n1"], "image": [Image.new("L", (7, 4)), Image.new("L", (9, 4))]},
        datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()}),
    )
    questions = datasets.Dataset.from_list(
        [{"id": number, "imageId": "n1", "question": "?", **row} for number, row in official.items()]
    )
    parts = {gqa_docs.HUB_IMAGES: images, gqa_star_docs.HUB_QUESTIONS: questions}
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, **_: parts[name])
    gqa_docs._hub_images.cache_clear()
    lines = (choice_folder / gqa_star_docs.CHOICES).read_text(encoding="utf-8").splitlines()
    docs = gqa_star_docs.documents(datasets.Dataset.from_list([json.loads(line) for line in lines]))
    assert [doc["answer"] for doc in docs] == ["red", "no", "woman"]
    assert [gqa_docs.images(doc)[0].width for doc in docs] == [9, 9, 7]
    gqa_docs._hub_images.cache_clear()


def test_without_the_hub_the_error_names_the_files_to_provide(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    docs = gqa_star_docs.documents(datasets.Dataset.from_list([{"question_id": "1"}]))
    with pytest.raises(UserError, match=r"lmms-lab-encoder/GQA.*DUALFOCUS_DATA.*mcq\.jsonl"):
        gqa_star_docs.prompt(docs[0])
