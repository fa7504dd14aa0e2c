"""df_hrbench: the official TSV with its images, means over cycles, and replies."""

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
from dualfocus_lmms.tasks.hrbench import docs as hrbench_docs

Load = Callable[[str], dict[Any, Any]]


@pytest.fixture
def rows(choice_folder: Path) -> list[dict[str, str]]:
    """The rows of the 4K file."""
    with (choice_folder / "hrbench" / "hr_bench_4k.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def write(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "hrbench" / "hr_bench_4k.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("split", ["4k", "8k"])
def test_local_files(
    load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    task = load_task(f"df_hrbench_{split}")[f"df_hrbench_{split}"]
    door, sign, _, last = docs = list(task.test_docs())
    assert door[task.config.metadata["dualfocus"]["question"]] == "What is the number on the door?"
    assert task.doc_to_text(sign) == (
        'Where is the "exit"\nsign?\nA. left\nB. right\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert [(doc["answer"], doc["cycle"], doc["category"]) for doc in docs] == [
        ("A", "0", "single"),
        ("B", "0", "cross"),
        ("D", "1", "single"),
        ("A", "1", "cross"),
    ]
    for doc in reversed(docs):
        (image,) = task.doc_to_visual(doc)
        assert (image.mode, image.size) == ("RGB", (120, 80))
    metrics = task.process_results(last, ["right"])
    assert metrics == {
        **dict.fromkeys(("accuracy", "accuracy_stderr", "cross", "cross_stderr"), metrics["accuracy"]),
        "letter_bias": {"said": "A", "right": "A"},
        "questions_without_image": 0,
        "questions_fingerprint": questions_fingerprint(docs),
    }
    assert (metrics["accuracy"]["cycle"], metrics["accuracy"]["score"]) == ("1", 100.0)
    before = task.process_results(sign, ["A"])["accuracy"]
    assert (before["cycle"], before["score"]) == ("0", 0.0)
    assert before["question"] == metrics["accuracy"]["question"]
    names = [name for name in task.aggregation() if not name.endswith("_stderr")]
    beside = {"letter_bias", "questions_without_image", "questions_fingerprint"}
    assert set(names) == {"accuracy", "single", "cross"} | beside
    assert [(name, other) for name in names for other in names if name != other and name in other] == []


@pytest.mark.parametrize(
    ("scores", "mean"),
    [
        ({"0": [100, 0], "1": [100, 100]}, 75.0),
        ({"0": [100], "1": [0, 0, 0]}, 50.0),  # each cycle counts the same
        ({"0": [100, 0, 0, 0], "1": [100, 100], "2": [0], "3": [0, 100]}, 43.75),
        ({"3": [100]}, 100.0),
    ],
)
def test_mean_over_cycles(scores: dict[str, list[float]], mean: float) -> None:
    items = [
        hrbench_docs.CycleScore(question="", cycle=cycle, score=score)
        for cycle, values in scores.items()
        for score in values
    ]
    assert hrbench_docs.mean_over_cycles(items) == pytest.approx(mean)


def test_the_standard_error_draws_all_cycles_of_a_question_together() -> None:
    scores = {"one": [100, 100], "two": [0, 0], "three": [100, 0]}
    items = [
        hrbench_docs.CycleScore(question=question, cycle=str(cycle), score=score)
        for question, values in scores.items()
        for cycle, score in enumerate(values)
    ]
    assert hrbench_docs.cycles_error(items) == pytest.approx(50 / 3**0.5)  # of 100, 0 and 50
    assert hrbench_docs.cycles_error(items[:2]) == "N/A"


@pytest.mark.parametrize(
    ("reply", "correct"),
    [
        # The correct one is D, "4": options that are numbers beside one that is a letter of another.
        ("4", True),
        ("4.", True),
        ("The answer is 4.", True),
        ("The answer is D.", True),
        ("D. 4", True),
        ("(D) 4", True),
        ("d", True),
        ("D)", True),
        ("**D. 4**", True),
        ("Answer: D", True),
        ("Option D", True),
        ("D: 4", True),
        ("D\n4", True),
        ("D, because of the sign.", True),
        ('"D"', True),
        ("The number is 4", False),
        ("44", False),
        ("4 and 5", False),
        ("-4", False),
        ("D or B", False),
        ("A. 4", False),
        ("2", False),
        ("C. D", False),
        ("C", False),
        ("B", False),
        ("A", False),
        ("E", False),
        ("0", False),
        ("three", False),
        ("D1", False),
        ("?", False),
        ("", False),
    ],
)
def test_replies(reply: str, correct: bool) -> None:
    doc = {
        "question": "What does the plate say?",
        "options": ["2", "3", "A", "4"],
        "answer": "D",
        "category": "single",
        "cycle": "2",
        "questions_without_image": 0,
        "questions_fingerprint": "0123",
    }
    metrics = hrbench_docs.results(doc, [reply])
    assert metrics["accuracy"] == metrics["single"]
    assert metrics["accuracy"]["score"] == (100.0 if correct else 0.0)


def test_rows_are_found_with_windows_line_ends(choice_folder: Path, rows: list[dict[str, str]]) -> None:
    before = hrbench_docs.read_questions(choice_folder, "hrbench_4k")
    write(choice_folder, rows)
    after = hrbench_docs.read_questions(choice_folder, "hrbench_4k")
    assert [doc["image"] for doc in after] != [doc["image"] for doc in before]
    assert [doc | {"image": ""} for doc in after] == [doc | {"image": ""} for doc in before]
    assert {image_tsv.images(doc)[0].size for doc in after} == {(120, 80)}


def test_large_images_are_found_in_every_row(
    choice_folder: Path, rows: list[dict[str, str]], noise: Callable[[int, int], Image.Image]
) -> None:
    for width, row in enumerate(rows, start=200):
        buffer = io.BytesIO()
        noise(width, 100).save(buffer, "PNG")
        row["image"] = base64.b64encode(buffer.getvalue()).decode()
    rows[2]["image"] = rows[2]["image"][:20]
    assert len(rows[0]["image"]) > image_tsv.LONG
    write(choice_folder, rows)
    docs = hrbench_docs.read_questions(choice_folder, "hrbench_4k")
    assert [image_tsv.images(docs[place])[0].width for place in (3, 0, 1)] == [203, 200, 201]
    with pytest.raises(UserError, match="2"):
        image_tsv.images(docs[2])


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "E"},
        {"category": "both"},
        {"cycle_category": ""},
        {"question": " "},
        {"B": ""},
        {"image": ""},
    ],
)
def test_an_invalid_row_raises(
    choice_folder: Path, rows: list[dict[str, str]], change: dict[str, str]
) -> None:
    write(choice_folder, [rows[0], rows[1] | change])
    with pytest.raises(UserError, match=r"hr_bench_4k\.tsv: index 1"):
        hrbench_docs.read_questions(choice_folder, "hrbench_4k")


@pytest.mark.parametrize("content", [b"", b"index\tquestion\n", b"\xff\xfe\x00"])
def test_a_file_of_another_format_raises(choice_folder: Path, content: bytes) -> None:
    (choice_folder / "hrbench" / "hr_bench_8k.tsv").write_bytes(content)
    with pytest.raises(UserError, match=r"hr_bench_8k\.tsv"):
        hrbench_docs.read_questions(choice_folder, "hrbench_8k")


@pytest.mark.parametrize("image", ["abc", "bm8gcGljdHVyZQ==", "%%%"])
def test_an_image_that_cannot_be_read_is_named(
    choice_folder: Path, rows: list[dict[str, str]], image: str
) -> None:
    write(choice_folder, [rows[0] | {"index": "17", "image": image}])
    (doc,) = hrbench_docs.read_questions(choice_folder, "hrbench_4k")
    with pytest.raises(UserError, match="17"):
        image_tsv.images(doc)


def test_the_hub_gives_the_same_questions_and_images(
    choice_folder: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    assert hrbench_docs.DATASET_NAME == "hrbench_version_split"
    hub = datasets.Dataset.from_list(rows, split="hrbench_4k")
    docs = hrbench_docs.documents(hub)
    local = hrbench_docs.read_questions(choice_folder, "hrbench_4k")
    names = ("index", "question", "options", "answer", "category", "cycle", "questions_without_image")
    for doc, other in zip(docs, local, strict=True):
        assert [doc[name] for name in names] == [other[name] for name in names]
        assert image_tsv.images(doc)[0].tobytes() == image_tsv.images(other)[0].tobytes()
    assert max(len(str(value)) for doc in docs for value in doc.values()) < 100  # no image in a document
    assert questions_fingerprint(docs) == questions_fingerprint(local)


def test_the_group_is_the_mean_of_both_splits(
    load_task: Load, choice_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("lmms_eval.evaluator_utils")
    monkeypatch.setenv("DUALFOCUS_DATA", str(choice_folder))
    tasks = load_task("df_hrbench")
    (splits,) = tasks.values()
    assert set(splits) == {"df_hrbench_4k", "df_hrbench_8k"}
    results: dict[str, Any] = {"df_hrbench": {}}
    names = ("accuracy", "single", "cross", "letter_bias")
    for name, value, samples in (("df_hrbench_4k", 10.0, 8), ("df_hrbench_8k", 30.0, 2)):
        results[name] = {f"{metric},none": value for metric in names} | {"samples": samples}
        results[name] |= {f"{metric}_stderr,none": "N/A" for metric in (*names, "questions_without_image")}
        results[name]["questions_without_image,none"] = 2
    utils.consolidate_group_results(results, {}, tasks)
    found = results["df_hrbench"]
    assert [found[f"{name},none"] for name in names] == [20.0] * 4
    assert found["questions_without_image,none"] == 4
