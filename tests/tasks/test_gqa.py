"""df_gqa: reading replies, documents from files and from the hub, prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.tasks.common import sources
from dualfocus_lmms.tasks.gqa import docs as gqa_docs

Load = Callable[[str], dict[Any, Any]]


def question(image: str, text: str, answer: str, structural: str, semantic: str) -> dict[str, Any]:
    return {
        "imageId": image,
        "question": text,
        "answer": answer,
        "fullAnswer": f"It is {answer}.",
        "isBalanced": True,
        "types": {"structural": structural, "semantic": semantic, "detailed": "thing"},
    }


QUESTIONS = {
    "101": question("n1", "What is beside the T-shirt?", "t-shirt", "query", "rel"),
    "102": question("n2", "Is it overcast?", "no", "verify", "global"),
    "103": question("n3", "Is it dark?", "no", "verify", "global"),
}


@pytest.fixture
def folder(tmp_path: Path, save_image: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DUALFOCUS_DATA folder of three questions; the third one's image is missing."""
    (tmp_path / "gqa" / "images").mkdir(parents=True)
    for name in ("n1", "n2"):
        save_image(tmp_path / "gqa" / "images" / f"{name}.jpg")
    write(tmp_path, QUESTIONS)
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return tmp_path


def write(folder: Path, questions: Any) -> None:
    (folder / "gqa" / "testdev_balanced_questions.json").write_text(json.dumps(questions), encoding="utf-8")


@pytest.mark.parametrize(
    ("reply", "answer", "correct"),
    [
        ("yes", "yes", True),
        ("Yes", "yes", True),
        ("YES", "yes", True),
        ("Yes.", "yes", True),
        ("Yes...", "yes", True),
        (" Yes. \n", "yes", True),
        ("No.", "no", True),
        ("no", "yes", False),
        ("", "yes", False),
        (".", "yes", False),
        ("yes .", "yes", False),
        ("Yes!", "yes", False),
        ("Yes,", "yes", False),
        ("Yes, it is.", "yes", False),
        ("'yes'", "yes", False),
        ('"yes"', "yes", False),
        ("**yes**", "yes", False),
        (".yes", "yes", False),
        ("yes\nyes", "yes", False),
        # Nothing inside a word goes.
        ("T-shirt", "t-shirt", True),
        ("tshirt", "t-shirt", False),
        ("t shirt", "t-shirt", False),
        ("shirts", "shirt", False),
        ("the shirt", "shirt", False),
        ("A shirt", "shirt", False),
        ("dark blue", "dark blue", True),
        ("Dark Blue.", "dark blue", True),
        ("dark  blue", "dark blue", False),
        ("blue", "dark blue", False),
        ("wineglass", "wine glass", False),
        ("grey", "gray", False),
        ("two", "2", False),
        ("3.5", "3.5", True),
        ("35", "3.5", False),
        ("U.S.", "u.s", True),
        ("U.S.", "u.s.", False),
        ("on the left", "left", False),
        ("Answer: left", "left", False),
    ],
)
def test_is_correct(reply: str, answer: str, correct: bool) -> None:
    assert gqa_docs.is_correct(reply, answer) is correct


def test_documents_and_scores(load_task: Load, folder: Path) -> None:
    task = load_task("df_gqa")["df_gqa"]
    first, second = docs = list(task.test_docs())
    assert (first["question_id"], first["answer"]) == ("101", "t-shirt")
    assert first[task.config.metadata["dualfocus"]["question"]] == "What is beside the T-shirt?"
    assert task.doc_to_visual(first)[0].size == (6, 4)
    assert task.process_results(first, ["tshirt"]) == {
        "accuracy": 0.0,
        "structural_query": 0.0,
        "semantic_rel": 0.0,
        "questions_without_image": 1,
        "questions_fingerprint": questions_fingerprint(docs),
    }
    assert task.process_results(second, ["No."]) == {
        "accuracy": 100.0,
        "structural_verify": 100.0,
        "semantic_global": 100.0,
        "questions_without_image": 1,
        "questions_fingerprint": questions_fingerprint(docs),
    }


def test_each_type_is_a_metric_and_no_name_is_part_of_another(load_task: Load, folder: Path) -> None:
    names = set(load_task("df_gqa")["df_gqa"].aggregation())
    types = {f"{kind}_{name}" for kind, known in gqa_docs.TYPES.items() for name in known}
    assert names == {"accuracy", "questions_without_image", "questions_fingerprint"} | types
    assert not [(name, other) for name in names for other in names if name != other and name in other]


def test_a_tiny_model_answers_it(
    load_task: Load, folder: Path, run_tiny: Callable[[Any], dict[str, Any]]
) -> None:
    scores = run_tiny(load_task("df_gqa")["df_gqa"])
    assert scores.pop("questions_without_image") == 1
    assert set(scores) == {
        "questions_fingerprint",
        "accuracy",
        "structural_query",
        "structural_verify",
        "semantic_rel",
        "semantic_global",
    }
    assert scores["accuracy"] == (scores["structural_query"] + scores["structural_verify"]) / 2


@pytest.mark.parametrize("protocol", ["paper", "release"])
def test_golden_prompts(
    load_task: Load,
    folder: Path,
    first_prompts: Callable[[Any, str], str],
    golden: Callable[[str, str], None],
    protocol: str,
) -> None:
    golden(f"df_gqa_{protocol}.txt", first_prompts(load_task("df_gqa")["df_gqa"], protocol))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub's two data sets in miniature; the questions are returned, load_dataset gives the images."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    columns = {"id": ["n2", "n1"], "image": [Image.new("L", (6, 4)), Image.new("RGB", (8, 2))]}
    images = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: images)
    gqa_docs._hub_images.cache_clear()
    yield datasets.Dataset.from_list([{"id": key, **row} for key, row in QUESTIONS.items() if key != "103"])
    gqa_docs._hub_images.cache_clear()


def test_from_the_hub(hub: Any) -> None:
    assert (gqa_docs.DATASET_PATH, gqa_docs.DATASET_KWARGS) == ("lmms-lab-encoder/GQA", None)
    first, second = gqa_docs.documents(hub)
    assert (first["question"], first["structural"], first["questions_without_image"]) == (
        "What is beside the T-shirt?",
        "query",
        0,
    )
    assert [gqa_docs.images(doc)[0].size for doc in (first, second)] == [(8, 2), (6, 4)]
    assert gqa_docs.images(second)[0].mode == "RGB"


def test_an_image_missing_from_the_hub_raises(hub: Any) -> None:
    (problem,) = gqa_docs.documents(hub.map(lambda row: {"imageId": "n9"}))
    with pytest.raises(UserError, match="n9"):
        gqa_docs.prompt(problem)


def test_answers_can_be_scored_without_the_hubs_images(hub: Any) -> None:
    changed = hub.map(lambda row: {"imageId": "n9"})
    with sources.without_images():
        assert len(gqa_docs.documents(changed)) == 2
        assert "image" not in gqa_docs.documents(changed).column_names


@pytest.mark.parametrize(
    "questions",
    [
        {},
        [],
        {"7": {}},
        {"7": "Is it dark?"},
        {"7": {**QUESTIONS["101"], "question": " "}},
        {"7": {**QUESTIONS["101"], "answer": None}},
        {"7": {**QUESTIONS["101"], "imageId": 3}},
        {"7": {**QUESTIONS["101"], "types": {"structural": "query", "semantic": "new"}}},
    ],
)
def test_an_invalid_file_raises(folder: Path, questions: Any) -> None:
    write(folder, questions)
    with pytest.raises(UserError, match=r"testdev_balanced_questions\.json"):
        gqa_docs.read_questions(folder)


def test_missing_files_are_named(load_task: Load, folder: Path) -> None:
    (folder / "gqa" / "testdev_balanced_questions.json").unlink()
    with pytest.raises(UserError, match=r"gqa/testdev_balanced_questions\.json"):
        load_task("df_gqa")


def test_prompts_equal_llavas(shared_data: Path) -> None:
    """LLaVA's own file of questions holds the whole prompt of each."""
    file = shared_data / "data" / "llava_eval" / "gqa" / "llava_gqa_testdev_balanced.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == 12_578
    assert [gqa_docs.prompt({"question": text.split("\n")[0]}) for text in texts] == texts
