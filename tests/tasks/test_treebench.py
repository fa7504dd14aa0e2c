"""df_treebench: the official TSV, its boxes, the official prompt, and replies."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.tasks.common import image_tsv
from dualfocus_lmms.tasks.common.scoring import NO_ANSWER
from dualfocus_lmms.tasks.treebench import docs as treebench_docs

Load = Callable[[str], dict[Any, Any]]
Rows = list[dict[str, Any]]


def row(index: int, **changes: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100), "green").save(buffer, "JPEG")
    return {
        "index": index,
        "image": base64.b64encode(buffer.getvalue()).decode(),
        "question": 'What is on\nthe "small" cup?',
        "multi-choice options": "A. a dog\nB. a cat\nC. Bees\nD. nothing",
        **dict(zip("ABCD", ("a dog", "a cat", "Bees", "nothing"), strict=True)),
        "answer": "B",
        "category": "Perception/Object Retrieval",
        "target_instances": "[[20, 10, 60, 30], [100, 50, 180, 90]]",
    } | changes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DUALFOCUS_DATA folder with two questions, of which the second has no box."""
    (tmp_path / "treebench").mkdir()
    write(tmp_path, [row(7), row(8, category="Reasoning/Ordering", target_instances="[]")])
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return tmp_path


def write(folder: Path, rows: Rows) -> None:
    with (folder / treebench_docs.QUESTIONS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_documents_boxes_prompts_and_scores(
    load_task: Load,
    folder: Path,
    first_prompts: Callable[[Any, str], str],
    golden: Callable[[str, str], None],
    run_tiny: Callable[[Any], dict[str, Any]],
) -> None:
    from dualfocus_lmms.models.host.requests import read_request

    task = load_task("df_treebench")["df_treebench"]
    first, second = docs = list(task.test_docs())
    assert first["box"] == pytest.approx([0.1, 0.1, 0.9, 0.9])
    assert first["boxes"][1] == pytest.approx([0.5, 0.5, 0.9, 0.9])
    assert (second["box"], second["boxes"]) == (None, [])
    assert task.doc_to_text(first) == (
        'Question: What is on\nthe "small" cup?\nOptions:\nA. a dog\nB. a cat\nC. Bees\nD. nothing\n'
        "Answer with the correct option's letter directly. \n"
    )
    assert task.doc_to_visual(first)[0].size == (200, 100)
    assert task.process_results(first, ["B"]) == {
        **dict.fromkeys(("accuracy", "object_retrieval"), 100.0),
        "letter_bias": {"said": "B", "right": "B"},
        "questions_without_image": 0,
        "questions_fingerprint": questions_fingerprint(docs),
    }
    names = task.aggregation()
    assert [(one, other) for one in names for other in names if one != other and one in other] == []
    for protocol in ("paper", "release"):
        golden(f"df_treebench_{protocol}.txt", first_prompts(task, protocol))
    (instance,) = task.instances
    *_, name, split = instance.args
    asked = read_request(instance, {name: {split: task.test_docs()}}, chat=False).question()
    assert asked.box is not None  # for grounding=annotated
    assert asked.box.xyxy == pytest.approx((0.1, 0.1, 0.9, 0.9))
    scores = run_tiny(task)
    assert scores["accuracy"] == pytest.approx((scores["object_retrieval"] + scores["ordering"]) / 2)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("B. a cat", "B"),
        ("The answer is B.", "B"),
        ("<think>A, or C?</think><answer>B</answer>", "B"),
        ("<answer> b </answer>", "B"),
        ("<answer>(b)</answer> A", "B"),
        ("(B)", "B"),
        ("Bees", "B"),  # a capital that stands for something else counts
        ("Answer: B", "A"),
        ("A B", "A"),
        ("D, not B", "D"),
        ("b", "B"),  # in "(B)"
        ("a cat", None),
        ("nothing", None),
        ("F", None),
        ("42", None),
        ("<answer></answer>", "A"),
        ("", "A"),
    ],
)
def test_replies(reply: str, letter: str | None) -> None:
    assert treebench_docs.read_answer(reply) == letter
    doc = {"answer": "B", "category": "ordering", "questions_without_image": 0, "questions_fingerprint": "0"}
    scores = treebench_docs.results(doc, [reply])
    assert (scores["accuracy"], scores["ordering"]) == ((100.0,) * 2 if letter == "B" else (0.0,) * 2)
    assert treebench_docs.results({**doc, "answer": "A"}, [NO_ANSWER])["accuracy"] == 0.0


def test_the_hub_gives_the_same_questions_and_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    local = treebench_docs.read_questions(folder)
    monkeypatch.delenv("DUALFOCUS_DATA")
    kwargs = treebench_docs.DATASET_KWARGS
    assert treebench_docs.DATASET_PATH == "HaochenWang/TreeBench"
    assert kwargs["data_files"] == {"train": "TreeBench.tsv"}
    cache = str(folder / "cache")
    files = {"train": str(folder / treebench_docs.QUESTIONS)}
    hub = datasets.load_dataset(
        "csv", data_files=files, delimiter=kwargs["delimiter"], split="train", cache_dir=cache
    )
    docs = treebench_docs.documents(hub)
    assert docs[0]["questions_fingerprint"] == questions_fingerprint(local)
    assert image_tsv.images(docs[0])[0].tobytes() == image_tsv.images(local[0])[0].tobytes()


@pytest.mark.parametrize(
    ("value", "boxes"),
    [
        ("[[0, 0, 10, 10]]", [(0, 0, 0.1, 0.2)]),
        ([[0, 0, 10, 10]], [(0, 0, 0.1, 0.2)]),
        ("[[-5, 0, 10.0, 60]]", [(0, 0, 0.1, 1)]),  # cut to the image
        ("[[10, 10, 10, 20]]", []),
        ("[]", []),
    ],
)
def test_boxes(value: Any, boxes: list[tuple[float, ...]]) -> None:
    found = treebench_docs.read_boxes(value, (100, 50), "here")
    assert [box.xyxy for box in found] == [pytest.approx(box) for box in boxes]


@pytest.mark.parametrize("value", ["", None, "[[1, 2, 3]]", "[1, 2, 3, 4]", "[['a', 0, 1, 1]]", "open('x')"])
def test_what_is_no_list_of_boxes_raises(value: Any) -> None:
    with pytest.raises(UserError, match=r"here: 'target_instances'"):
        treebench_docs.read_boxes(value, (100, 50), "here")


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "E"},
        {"category": "Poems"},
        {"A": ""},
        {"B": ""},
        {"image": ""},
        {"image": "bm8="},
        {"question": " "},
        {"target_instances": "[[0]]"},
    ],
)
def test_an_invalid_row_raises(folder: Path, change: dict[str, Any]) -> None:
    write(folder, [row(7), row(8, **change)])
    with pytest.raises(UserError, match="8"):
        treebench_docs.read_questions(folder)
