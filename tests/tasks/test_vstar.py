"""df_vstar: the official file, its options in an order of our own, and replies."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.results.coverage import annotated_regions
from dualfocus_lmms.tasks.common import options, sources
from dualfocus_lmms.tasks.vstar import docs as vstar_docs

Load = Callable[[str], dict[Any, Any]]


def test_local_files(load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    task = load_task("df_vstar")["df_vstar"]
    cup, side = docs = list(task.test_docs())
    assert cup[task.config.metadata["dualfocus"]["question"]] == "What is the color of the cup?"
    assert set(cup["options"]) == {"red", "sand (light)", "blue", "white"}
    assert cup["options"]["ABCD".index(cup["answer"])] == "red"
    assert side["options"]["AB".index(side["answer"])] == "right"
    lines = task.doc_to_text(cup).split("\n")
    assert lines[0] == "What is the color of the cup?"
    assert lines[1:5] == [f"{letter}. {text}" for letter, text in zip("ABCD", cup["options"], strict=True)]
    assert lines[5:] == ["Answer with the option's letter from the given choices directly."]
    assert task.doc_to_visual(cup)[0].size == (60, 40)
    metrics = task.process_results(cup, ["red"])
    assert metrics["accuracy"] == metrics["direct_attributes"] == 100.0
    assert "relative_position" not in metrics
    assert metrics["letter_bias"] == {"said": cup["answer"], "right": cup["answer"]}
    assert metrics["questions_without_image"] == 1
    assert metrics["questions_fingerprint"] == questions_fingerprint(docs)
    names = task.aggregation()
    assert [(name, other) for name in names for other in names if name != other and name in other] == []


def test_the_order_depends_on_the_seed_and_no_position_is_preferred() -> None:
    assert vstar_docs.SEED == 0
    assert vstar_docs.shuffle("abcd", "0") == ["c", "d", "b", "a"]
    positions = Counter(vstar_docs.shuffle("abcd", str(number)).index("a") for number in range(4000))
    assert all(abs(positions[position] - 1000) < 120 for position in range(4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What?\n(A) one\n(B) two", ("What?", ["one", "two"])),
        ("What? (A) one (B) two (C) three", ("What?", ["one", "two", "three"])),
        ("What?\n(A) a (B-side)\n(B) x (c)", ("What?", ["a (B-side)", "x (c)"])),
        ("Is it (X)?\n(A) one\n(B) two", ("Is it (X)?", ["one", "two"])),
        ("What?\n(A) one", None),
        ("What?\n(A) one\n(C) two", None),
        ("What?\n(A) one\n(B) one", None),
        ("What?", None),
    ],
)
def test_read_options(text: str, expected: tuple[str, list[str]] | None) -> None:
    for whole in (text, f"{text}\nAnswer with the option's letter from the given choices directly."):
        if expected is None:
            with pytest.raises(UserError, match="here"):
                vstar_docs.read_options(whole, "here")
        else:
            assert vstar_docs.read_options(whole, "here") == expected


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        # The correct one is B, "right": a word with another meaning.
        ("The answer is right.", True),
        ("Right.", True),
        ("right", True),
        ("B. right", True),
        ("b) Right", True),
        ("(B)", True),
        ("The answer is (B).", True),
        ("The correct option is B", True),
        ("Answer: B. right", True),
        ("B. The cup is on the right side of the dog.", True),
        ("[B]", True),
        ("B\n\nThe cup", True),
        ("'B'", True),
        ("B ", True),
        ("b", True),
        ("B.", True),
        ("That is right: A", False),
        ("The cup is on the right side of the dog.", False),
        ("right side", False),
        ("the right", False),
        ("left", False),
        ("A. right", False),
        ("A", False),
        ("A. left", False),
        ("A. left, not B", False),
        ("Left or right", False),
        ("A or B", False),
        ("C", False),
        ("D. right", False),
        ("Both", False),
        ("1", False),
        ("", False),
    ],
)
def test_replies(reply: str, correct: bool) -> None:
    doc = {
        "options": ["left", "right"],
        "answer": "B",
        "category": "relative_position",
        "questions_without_image": 3,
        "questions_fingerprint": "0123",
    }
    metrics = vstar_docs.results(doc, [reply])
    assert metrics["accuracy"] == metrics["relative_position"] == (100.0 if correct else 0.0)
    assert metrics["letter_bias"]["right"] == "B"
    assert metrics["questions_without_image"] == 3
    assert metrics["questions_fingerprint"] == "0123"


def test_missing_images_are_counted_and_listed(choice_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        docs = vstar_docs.read_questions(choice_folder)
    assert [doc["questions_without_image"] for doc in docs] == [1, 1]
    assert "sa_3.jpg" in caplog.text


@pytest.mark.parametrize(
    "change", [{"label": "E"}, {"label": None}, {"category": "OCR"}, {"text": "What?"}, {"image": None}]
)
def test_an_invalid_line_raises(
    choice_folder: Path, write_lines: Callable[..., Path], change: dict[str, Any]
) -> None:
    file = choice_folder / vstar_docs.QUESTIONS
    row, *_ = sources.read_rows(file, lambda row, where: row)
    write_lines(file, [row | change])
    with pytest.raises(UserError, match=r"test_questions\.jsonl:1"):
        vstar_docs.read_questions(choice_folder)


def test_the_boxes_beside_the_images_are_named_for_the_report(
    load_task: Load, boxed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(boxed_folder))
    task = load_task("df_vstar")["df_vstar"]
    cup, side = docs = list(task.test_docs())
    columns = task.config.metadata["dualfocus"]
    box, regions = annotated_regions(cup, columns)
    assert box == regions[0] == pytest.approx((0.1, 0.1, 0.3, 0.3))
    box, regions = annotated_regions(side, columns)
    assert box == pytest.approx((0, 0, 1, 0.7))
    assert regions == [pytest.approx((0, 0, 0.1, 0.1)), pytest.approx((0.5, 0.5, 1, 0.7))]  # cut to the image
    for path in (boxed_folder / "vstar").glob("*/*.json"):
        path.unlink()
    plain = vstar_docs.read_questions(boxed_folder)
    assert [(doc["annotated_box"], doc["annotated_boxes"]) for doc in plain] == [(None, []), (None, [])]
    assert questions_fingerprint(docs) == questions_fingerprint(plain)


def test_an_annotation_that_is_missing_is_named_and_a_damaged_one_raises(
    boxed_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = boxed_folder / "vstar" / "direct_attributes" / "sa_1.json"
    for content in (
        "[]",
        "{}",
        '{"target_object": ["a"], "bbox": []}',
        '{"target_object": ["a"], "bbox": [[1, 2]]}',
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=r"sa_1\.json: .*'bbox'"):
            vstar_docs.read_questions(boxed_folder)
    path.unlink()
    with caplog.at_level(logging.WARNING):
        first, second = vstar_docs.read_questions(boxed_folder)
    assert "1 of 2" in caplog.text
    assert "sa_1.json" in caplog.text
    assert (first["annotated_boxes"], len(second["annotated_boxes"])) == ([], 2)
    (boxed_folder / "vstar" / "relative_position" / "sa_2.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match=r"sa_2\.jpg"):
        vstar_docs.read_questions(boxed_folder)


def test_the_hub_gives_the_same_questions(choice_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    rows = [
        {**row, "image": Image.new("L", (5, 4))}
        for row in sources.read_rows(choice_folder / vstar_docs.QUESTIONS, lambda row, where: row)
    ]
    hub = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    docs = vstar_docs.documents(hub)
    local = vstar_docs.read_questions(choice_folder)
    names = ("question_id", "question", "options", "answer", "category")
    assert len(docs) == 3
    for doc, other in zip(docs, local, strict=False):
        assert [doc[name] for name in names] == [other[name] for name in names]
        assert (doc["annotated_box"], doc["annotated_boxes"]) == (None, [])
    assert options.images(docs[2])[0].size == (5, 4)
