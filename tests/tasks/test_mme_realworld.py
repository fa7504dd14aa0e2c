"""df_mme_realworld and its lite edition: the official files, the official prompt, and replies."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.tasks.common.scoring import NO_ANSWER
from dualfocus_lmms.tasks.mme_realworld import docs as mme_docs

Load = Callable[[str], dict[Any, Any]]
NONE = "The image does not feature the sign."
CHOICES = [
    f"({letter}) {text}" for letter, text in zip("ABCDE", ("12", "21", "a cat", "B52", NONE), strict=True)
]
ROW = {
    "Question_id": "Perception/OCR with Complex Context/signage/0001",
    "Question Type": "Multiple Choice",
    "Image": "street/a.jpg",
    "Text": "What number is on the sign?",
    "Answer choices": CHOICES,
    "Ground truth": "B",
    "Category": "signage",
    "Subtask": "OCR with Complex Context",
    "Task": "Perception",
}
OTHER = {**ROW, "Task": "Reasoning", "Subtask": "Autonomous_Driving", "Ground truth": "E", "Question_id": "2"}
FILES = {
    "df_mme_realworld": (mme_docs.QUESTIONS, mme_docs.IMAGES, mme_docs.read_questions),
    "df_mme_realworld_lite": (mme_docs.LITE_QUESTIONS, mme_docs.LITE_IMAGES, mme_docs.read_lite_questions),
}
LITE = "df_mme_realworld_lite"


@pytest.fixture
def folder(tmp_path: Path, save_image: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DUALFOCUS_DATA folder with both editions: two questions, and one without its image."""
    for questions, images, _ in FILES.values():
        (tmp_path / images / "street").mkdir(parents=True)
        save_image(tmp_path / images / "street" / "a.jpg")
        rows = [ROW, OTHER, {**ROW, "Image": "street/gone.jpg"}]
        (tmp_path / questions).write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_documents_prompts_and_scores(
    load_task: Load,
    folder: Path,
    first_prompts: Callable[[Any, str], str],
    golden: Callable[[str, str], None],
    name: str,
) -> None:
    utils = pytest.importorskip("lmms_eval.tasks.mme_realworld.utils")
    task = load_task(name)[name]
    first, second = docs = list(task.test_docs())
    official = {"question": ROW["Text"], "multi-choice options": CHOICES}
    assert task.doc_to_text(first) == utils.mme_realworld_doc_to_text(official)
    assert first["options"] == ["12", "21", "a cat", "B52", NONE]
    assert task.doc_to_visual(first)[0].size == (6, 4)
    assert task.process_results(first, ["B"]) == {
        **dict.fromkeys(("accuracy", "perception_all", "perception_ocr"), 100.0),
        "letter_bias": {"said": "B", "right": "B"},
        "questions_without_image": 1,
        "questions_fingerprint": questions_fingerprint(docs),
    }
    assert task.process_results(second, ["A"])["reasoning_autonomous_driving"] == 0.0
    names = task.aggregation()
    assert [(one, other) for one in names for other in names if one != other and one in other] == []
    if name == LITE:
        for protocol in ("paper", "release"):
            golden(f"{name}_{protocol}.txt", first_prompts(task, protocol))


def test_a_tiny_model_answers_it(
    load_task: Load, folder: Path, run_tiny: Callable[[Any], dict[str, Any]]
) -> None:
    scores = run_tiny(load_task(LITE)[LITE])
    assert scores["questions_without_image"] == 1
    assert scores["accuracy"] == pytest.approx((scores["perception_all"] + scores["reasoning_all"]) / 2)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. 21", "B"),
        ("(B) 21", "B"),
        ("**B**", "B"),
        ("The best answer is B", "B"),
        ("The answer is (B).", "B"),
        ("The best answer is: B", "B"),
        ("Best answer: B", "B"),
        ("B52", "B"),  # a capital that stands for something else counts
        ("Answer: B", "A"),  # so does that of "Answer"
        ("A or B", "A"),
        ("A cat", "A"),
        ("not A but B", "A"),
        ("b", "B"),  # no capital: the first option that contains it
        ("21", "B"),
        ("cat", "C"),
        ("a cat", "C"),
        ("does not feature", "E"),
        ("F", "E"),
        ("dog", None),
        ("42", None),
        ("the number that one can see on this sign is twenty one", None),
        ("", "A"),
    ],
)
def test_replies(reply: str, letter: str | None) -> None:
    utils = pytest.importorskip("lmms_eval.tasks.mme_realworld.utils")
    assert mme_docs.read_answer(reply, CHOICES) == letter
    assert (utils.extract_characters_regex(reply, CHOICES) or None) == letter
    doc = {**_document(), "answer": "B"}
    scores = mme_docs.results(doc, [reply])
    assert scores["accuracy"] == (100.0 if letter == "B" else 0.0)
    assert scores["letter_bias"]["said"] == letter


def _document() -> dict[str, Any]:
    doc = {"choices": CHOICES, "answer": "A", "kind": "perception", "domain": "ocr"}
    return {**doc, "questions_without_image": 0, "questions_fingerprint": "0123"}


def test_no_answer_is_wrong_even_where_an_empty_reply_is_correct() -> None:
    assert mme_docs.results(_document(), [""])["accuracy"] == 100.0
    assert mme_docs.results(_document(), [NO_ANSWER])["accuracy"] == 0.0


def test_the_hub_and_the_files_have_the_same_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    local = mme_docs.read_lite_questions(folder)
    monkeypatch.delenv("DUALFOCUS_DATA")
    assert (mme_docs.DATASET_PATH, mme_docs.LITE_DATASET_PATH) == (mme_docs.HUB, mme_docs.LITE_HUB)
    assert mme_docs.DATASET_KWARGS is None
    image = base64.b64encode((folder / mme_docs.IMAGES / "street" / "a.jpg").read_bytes()).decode()
    hub = datasets.Dataset.from_list(
        [
            {
                "index": row["Question_id"],
                "bytes": image,
                "question": row["Text"],
                "multi-choice options": row["Answer choices"],
                "answer": row["Ground truth"],
                "category": f"{row['Task']}/{row['Subtask']}",
                "l2-category": row["Category"],
            }
            for row in (ROW, OTHER)
        ]
    )
    docs = mme_docs.lite_documents(hub)
    assert docs[0]["questions_fingerprint"] == questions_fingerprint(local)
    assert [mme_docs.prompt(doc) for doc in docs] == [mme_docs.prompt(doc) for doc in local]
    assert mme_docs.images(docs[1])[0].size == (6, 4)
    assert max(len(str(value)) for value in docs[0].values()) < len(image)


@pytest.mark.parametrize(
    "change",
    [
        {"Ground truth": "F"},
        {"Answer choices": "(A) 12"},
        {"Answer choices": ["(A) 12", " "]},
        {"Task": "Memory"},
        {"Subtask": "Poems"},
        {"Text": ""},
        {"Image": None},
    ],
)
def test_an_invalid_row_is_named(folder: Path, change: dict[str, Any]) -> None:
    (folder / mme_docs.QUESTIONS).write_text(json.dumps([ROW, {**OTHER, **change}]), encoding="utf-8")
    with pytest.raises(UserError, match=r"MME_RealWorld\.json, question '2'"):
        mme_docs.read_questions(folder)
