"""df_pope_* through the host: from local files, from the hub's columns, and what stops it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.tasks.common import scoring, sources
from dualfocus_lmms.tasks.pope import docs as pope_docs

Load = Callable[[str], dict[Any, Any]]
SPLITS = ("random", "popular", "adversarial")


@pytest.mark.parametrize("split", SPLITS)
def test_local_files(load_task: Load, pope_folder: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(pope_folder))
    task = load_task(f"df_pope_{split}")[f"df_pope_{split}"]
    first, second = task.test_docs()
    column = task.config.metadata["dualfocus"]["question"]
    assert (first[column], first["answer"], second["answer"]) == ("Is there a dog in the image?", "yes", "no")
    assert task.doc_to_text(first) == (
        "Is there a dog in the image?\nAnswer the question using a single word or phrase."
    )
    (image,) = task.doc_to_visual(first)
    assert (image.mode, image.size) == ("RGB", (6, 4))
    metrics = task.process_results(second, ["No, there is not."])
    assert (metrics["accuracy"], metrics["yes_ratio"], metrics["questions_without_image"]) == (100.0, 0.0, 1)


def test_requests_name_the_question_column(
    load_task: Load, pope_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(pope_folder))
    task = load_task("df_pope_random")["df_pope_random"]
    task.build_all_requests()
    assert [request.metadata["dualfocus"] for request in task.instances] == [{"question": "question"}] * 2
    assert task.instances[0].arguments[1]["max_new_tokens"] == 128


def test_missing_images_are_named(pope_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        docs = pope_docs.read_split(pope_folder, "random")
    assert [doc["questions_without_image"] for doc in docs] == [1, 1]
    (record,) = caplog.records
    assert record.args == ("df_pope_random", 1, 3, 1, pope_folder / "pope" / "images", "gone.png")


def test_without_images_no_question_is_left_out(pope_folder: Path) -> None:
    shutil.rmtree(pope_folder / "pope" / "images")
    with sources.without_images():
        docs = pope_docs.read_split(pope_folder, "random")
    assert [(doc["question_id"], doc["questions_without_image"]) for doc in docs] == [
        ("1", 0), ("2", 0), ("3", 0),
    ]  # fmt: skip
    with pytest.raises(UserError):
        pope_docs.read_split(pope_folder, "random")


def test_the_fingerprint_is_that_of_the_questions_not_of_the_folder(
    pope_folder: Path, write_lines: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import datasets

    split = datasets.Dataset.from_dict({"text": ["x"]}, split="random")

    def fingerprint(folder: Path) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DUALFOCUS_DATA", str(folder))
            (found,) = set(pope_docs.documents(split)["questions_fingerprint"])
        return found

    before = fingerprint(pope_folder)
    copy = tmp_path_factory.mktemp("copy") / "elsewhere"
    shutil.copytree(pope_folder, copy)
    assert fingerprint(copy) == before
    file = copy / "pope" / "coco_pope_random.json"
    file.write_text(file.read_text("utf-8").replace('"yes"', '"no"'), "utf-8")
    assert fingerprint(copy) != before


def test_the_host_shows_the_standard_errors(
    load_task: Load, pope_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's own aggregation of 40 replies, and its table."""
    utils = pytest.importorskip("lmms_eval.evaluator_utils")
    monkeypatch.setenv("DUALFOCUS_DATA", str(pope_folder))
    task = load_task("df_pope_random")["df_pope_random"]
    output = utils.TaskOutput.from_taskdict("df_pope_random", task)
    docs = list(task.test_docs()) * 20
    for number, doc in enumerate(docs):
        for name, value in task.process_results(doc, ["no" if number % 3 else "yes"]).items():
            output.sample_metrics[name, "none"].append(value)
    output.calculate_aggregate_metric()
    output.calculate_clt_aggregate_metric()
    results, *_ = utils.consolidate_results([output])
    pairs = output.sample_metrics["f1", "none"]
    found = results["df_pope_random"]
    for name in ("precision", "recall", "f1"):
        assert found[f"{name},none"] == getattr(scoring, name)(pairs)
        assert found[f"{name}_stderr,none"] == getattr(scoring, f"{name}_error")(pairs) > 0
    assert found["questions_fingerprint,none"] == docs[0]["questions_fingerprint"]
    from lmms_eval.utils import make_table

    table = make_table({"results": results, "versions": {}, "n-shot": {}, "higher_is_better": {}})
    (row,) = [line for line in table.splitlines() if "|f1 " in line]
    assert f"{found['f1_stderr,none']:.4f}" in row
    assert "_stderr" not in table


def test_group_is_the_plain_mean_of_its_splits(
    load_task: Load, pope_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("lmms_eval.evaluator_utils")
    monkeypatch.setenv("DUALFOCUS_DATA", str(pope_folder))
    tasks = load_task("df_pope")
    (splits,) = tasks.values()
    assert set(splits) == {f"df_pope_{split}" for split in SPLITS}
    results: dict[str, Any] = {}
    for number, name in enumerate(splits, start=1):
        metrics = ("accuracy", "precision", "recall", "f1", "yes_ratio", "questions_without_image")
        results[name] = {f"{metric},none": 10 * number for metric in metrics}
        results[name] |= {f"{metric}_stderr,none": "N/A" for metric in metrics} | {"samples": 10**number}
    results["df_pope"] = {}
    utils.consolidate_group_results(results, {}, tasks)
    found = {name: value for name, value in results["df_pope"].items() if "_stderr" not in name}
    assert found.pop("questions_without_image,none") == 60
    assert found.pop("samples") == 1110
    assert found == {f"{name},none": 20.0 for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}


def test_without_the_variable_documents_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    assert (pope_docs.DATASET_PATH, pope_docs.DATASET_KWARGS) == ("lmms-lab-encoder/POPE", None)
    columns = {
        "id": ["0"],
        "question_id": ["1"],
        "question": ["Is there a dog in the image?"],
        "answer": ["yes"],
        "image_source": ["COCO_val2014_000000310196"],
        "image": [Image.new("L", (6, 4))],
        "category": ["random"],
    }
    hub = datasets.Dataset.from_dict(columns, split="random").cast_column("image", datasets.Image())
    docs = pope_docs.documents(hub)
    assert set(docs.column_names) == {*pope_docs.COLUMNS, "questions_without_image", "questions_fingerprint"}
    assert docs[0]["questions_without_image"] == 0
    assert sources.images(docs[0])[0].mode == "RGB"


def test_a_missing_folder_raises(load_task: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        load_task("df_pope_random")


@pytest.mark.parametrize("lost", ["coco_pope_popular.json", "images"])
def test_a_missing_file_or_folder_raises(pope_folder: Path, lost: str) -> None:
    path = pope_folder / "pope" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=lost):
        pope_docs.read_split(pope_folder, "popular")


def test_no_image_at_all_raises(pope_folder: Path) -> None:
    for path in (pope_folder / "pope" / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="3 questions"):
        pope_docs.read_split(pope_folder, "popular")


@pytest.mark.parametrize(
    "row",
    [
        {"image": "red.png", "text": "Is there a dog?", "label": "maybe"},
        {"image": "red.png", "text": "Is there a dog?"},
        {"image": "red.png", "text": " ", "label": "yes"},
        {"text": "Is there a dog?", "label": "yes"},
    ],
)
def test_an_invalid_line_raises(
    pope_folder: Path, write_lines: Callable[..., Path], row: dict[str, str]
) -> None:
    write_lines(pope_folder / "pope" / "coco_pope_random.json", [row])
    with pytest.raises(UserError, match=r"coco_pope_random\.json:1"):
        pope_docs.read_split(pope_folder, "random")
