"""df_documents: DocVQA, InfographicVQA, ChartQA and OCRBench; files, prompts and lmms-eval's scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.tasks.chartqa import docs as chartqa_docs
from dualfocus_lmms.tasks.common.scoring import NO_ANSWER
from dualfocus_lmms.tasks.docvqa import docs as docvqa_docs
from dualfocus_lmms.tasks.ocrbench import docs as ocrbench_docs

Load = Callable[[str], dict[Any, Any]]
BESIDE = {"questions_without_image": 0, "questions_fingerprint": "0123"}
DATE = {"questionId": 3, "question": "What is the date?", "answers": ["1/8/93", "8 January 1993"]}
BARS = {"imgname": "a.png", "query": "How many bars are there?", "label": "14"}
SIGN = {
    "dataset_name": "textVQA",
    "id": 1,
    "image_path": "a.png",
    "question": "What is written? ",
    "answers": ["STOP", "Stop sign"],
    "type": "Scene Text-centric VQA",
}
FORMULA = {**SIGN, "dataset_name": "HME100k", "answers": "y = \\frac { 3 } { 2 }\n"} | {
    "type": "Handwritten Mathematical Expression Recognition"
}
CONTENTS: dict[str, Any] = {
    docvqa_docs.DOCVQA_QUESTIONS: {
        "data": [{**DATE, "image": "documents/a.png"}, {**DATE, "image": "b.png"}]
    },
    docvqa_docs.INFOVQA_QUESTIONS: {"data": [{**DATE, "image_local_name": "a.png"}]},
    chartqa_docs.FILES["human"]: [BARS],
    chartqa_docs.FILES["augmented"]: [{**BARS, "label": "Yes"}, {**BARS, "imgname": "gone.png"}],
    ocrbench_docs.QUESTIONS: [SIGN, FORMULA],
}
FOLDERS = (docvqa_docs.DOCVQA_IMAGES, docvqa_docs.INFOVQA_IMAGES, chartqa_docs.IMAGES, ocrbench_docs.IMAGES)
# Task: the first question's prompt, replies and their scores, and how many questions are left out.
TASKS: dict[str, tuple[str, dict[str, dict[str, float]], int]] = {
    "df_docvqa_val": (
        "What is the date?\nAnswer the question using a single word or phrase.",
        {"1/8/93": {"anls": 100.0}, "1/8/94": {"anls": pytest.approx(500 / 6)}, "never": {"anls": 0.0}},
        1,
    ),
    "df_infovqa_val": (
        "What is the date?\nAnswer the question using a single word or phrase.",
        {"8  january 1993": {"anls": pytest.approx(100.0)}, "": {"anls": 0.0}},
        0,
    ),
    "df_chartqa": (
        "How many bars are there?\nAnswer the question with a single word.",
        {"14.5": {"accuracy": 100.0, "human": 100.0}, "15": {"accuracy": 0.0, "human": 0.0}},
        1,
    ),
    "df_ocrbench": (
        "What is written?",
        {
            "It says stop.": {"accuracy": 100.0, "scene_text": 100.0},
            "go": {"accuracy": 0.0, "scene_text": 0.0},
        },
        0,
    ),
}


@pytest.fixture
def folder(tmp_path: Path, save_image: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DUALFOCUS_DATA folder for the four tasks."""
    for name in FOLDERS:
        (tmp_path / name).mkdir(parents=True)
        save_image(tmp_path / name / "a.png")
    for path, content in CONTENTS.items():
        write(tmp_path, path, content)
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return tmp_path


def write(folder: Path, path: str, content: Any) -> None:
    (folder / path).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", TASKS)
def test_documents_prompts_and_scores(
    load_task: Load,
    folder: Path,
    first_prompts: Callable[[Any, str], str],
    golden: Callable[[str, str], None],
    name: str,
) -> None:
    asked, replies, left_out = TASKS[name]
    task = load_task(name)[name]
    docs = list(task.test_docs())
    doc = docs[0]
    assert task.doc_to_text(doc) == asked
    assert doc[task.config.metadata["dualfocus"]["question"]].strip() == asked.split("\n")[0]
    assert task.doc_to_visual(doc)[0].size == (6, 4)
    beside = {"questions_without_image": left_out, "questions_fingerprint": questions_fingerprint(docs)}
    for reply, scores in replies.items():
        assert task.process_results(doc, [reply]) == {**scores, **beside}
        zeros = dict.fromkeys(scores, 0.0)
        assert task.process_results(doc, [NO_ANSWER]) == {**zeros, **beside}
    names = task.aggregation()
    assert [(one, other) for one in names for other in names if one != other and one in other] == []
    for protocol in ("paper", "release"):
        golden(f"{name}_{protocol}.txt", first_prompts(task, protocol))


def test_a_tiny_model_answers_them(
    load_task: Load, folder: Path, run_tiny: Callable[[Any], dict[str, Any]]
) -> None:
    scores = run_tiny(load_task("df_chartqa")["df_chartqa"])
    assert len(scores.pop("questions_fingerprint")) == 16
    assert scores == {"accuracy": 0.0, "human": 0.0, "augmented": 0.0, "questions_without_image": 1}


# --- scores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answers", "score"),
    [
        ("Paris", ["paris"], 100.0),
        ("PARIS ", ["paris"], 100.0),
        ("Pariss", ["paris"], 100 * 5 / 6),
        ("Paris.", ["paris"], 100 * 5 / 6),  # a full stop is a wrong character
        ("in Paris", ["paris"], 100 * 5 / 8),
        ("the city of Paris", ["paris"], 0.0),  # 5 of 17 is below one half
        ("par", ["paris"], 60.0),
        ("pa", ["paris"], 0.0),
        ("abcd", ["abxy"], 50.0),  # one half is enough
        ("London", ["paris", "london"], 100.0),
        ("2,000", ["2000"], 80.0),
        ("", ["paris"], 0.0),
    ],
)
def test_anls(reply: str, answers: list[str], score: float) -> None:
    assert docvqa_docs.anls(reply, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("reply", "answer", "correct"),
    [
        ("14", "14", True),
        ("14.0", "14", True),
        ("14.7", "14", True),  # 5%
        ("14.71", "14", False),
        ("13.3", "14", True),
        ("2100", "2010", True),  # a year is a number as well
        ("5%", "0.05", True),
        ("5", "5%", False),
        ("about 14", "14", False),
        ("14.", "14", True),
        ("0", "0", True),
        ("0.0", "0", False),  # nothing is within 5% of 0: compared as texts
        ("yes", "Yes", True),
        ("Yes.", "Yes", False),
        ("Blue bars", "blue", False),
        ("", "Yes", False),
    ],
)
def test_relaxed_accuracy(reply: str, answer: str, correct: bool) -> None:
    assert chartqa_docs.is_correct(reply, answer) is correct
    doc = {"answer": answer, "kind": "augmented", **BESIDE}
    scores = chartqa_docs.results(doc, [reply])
    assert (scores["accuracy"], scores["augmented"]) == ((100.0,) * 2 if correct else (0.0,) * 2)


@pytest.mark.parametrize(
    ("dataset", "reply", "answer", "correct"),
    [
        ("svt", "CENTRE", ["centre"], True),
        ("svt", "The word is centre.", ["Centre"], True),
        ("svt", "cent re", ["centre"], False),
        ("svt", "cen", ["centre"], False),
        ("docVQA", "on two\nlines", ["two lines"], True),
        ("docVQA", "b", ["a", "b"], True),
        ("docVQA", "", ["a"], False),
        ("ESTVQA_cn", "\uff21\uff11", ["a1"], True),  # full width: lmms-eval alone makes it equal
        ("HME100k", "y=\\frac{3}{2}", ["y = \\frac { 3 } { 2 }\n"], True),
        ("HME100k", "Y=\\frac{3}{2}", ["y = \\frac { 3 } { 2 }\n"], False),
    ],
)
def test_ocrbench_replies(dataset: str, reply: str, answer: list[str], correct: bool) -> None:
    doc = {"dataset": dataset, "answer": answer, "question_type": "Doc-oriented VQA", **BESIDE}
    scores = ocrbench_docs.results(doc, [reply])
    assert (scores["accuracy"], scores["document_text"]) == ((100.0,) * 2 if correct else (0.0,) * 2)


def test_an_empty_answer_would_be_in_every_reply_but_not_in_none() -> None:
    doc = {"dataset": "svt", "answer": [""], "question_type": "Doc-oriented VQA", **BESIDE}
    assert ocrbench_docs.results(doc, ["x"])["accuracy"] == 100.0
    assert ocrbench_docs.results(doc, [NO_ANSWER])["accuracy"] == 0.0


# --- the hub, and other files ------------------------------------------------------------------------------


def test_the_hub_and_the_files_have_the_same_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    files = [
        docvqa_docs.read_infographics(folder),
        chartqa_docs.read_questions(folder)[:1],
        ocrbench_docs.read_questions(folder)[:1],
    ]
    monkeypatch.delenv("DUALFOCUS_DATA")
    assert (docvqa_docs.INFOVQA_NAME, docvqa_docs.DATASET_PATH) == ("InfographicVQA", docvqa_docs.HUB)
    assert (chartqa_docs.DATASET_PATH, chartqa_docs.DATASET_KWARGS) == (chartqa_docs.HUB, None)
    rows = [
        {**DATE, "questionId": "3"},
        {"question": BARS["query"], "answer": BARS["label"], "type": "human_test"},
        {"question": "What is written?", "answer": SIGN["answers"], "dataset": "textVQA"}
        | {"question_type": SIGN["type"]},
    ]
    readers = (docvqa_docs.infographics, chartqa_docs.documents, ocrbench_docs.documents)
    for row, read, local in zip(rows, readers, files, strict=True):
        hub = datasets.Dataset.from_list([{**row, "image": Image.new("L", (6, 4))}])
        docs = read(hub.cast_column("image", datasets.Image()))
        assert {name: value for name, value in docs[0].items() if name in local[0]} | {"image": 0} == (
            local[0] | {"image": 0, "questions_without_image": 0}
        )
        assert docs[0]["questions_fingerprint"] == questions_fingerprint(local)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (docvqa_docs.DOCVQA_QUESTIONS, []),
        (docvqa_docs.DOCVQA_QUESTIONS, {"data": [{**DATE, "image": "a.png", "answers": []}]}),
        (docvqa_docs.DOCVQA_QUESTIONS, {"data": [DATE]}),
        (docvqa_docs.INFOVQA_QUESTIONS, {"data": [{**DATE, "image_local_name": "a.png", "question": " "}]}),
        (docvqa_docs.INFOVQA_QUESTIONS, [{**DATE, "image_local_name": "a.png"}]),
        (chartqa_docs.FILES["human"], {"data": [BARS]}),
        (chartqa_docs.FILES["augmented"], [{**BARS, "label": 14}]),
        (ocrbench_docs.QUESTIONS, [{**SIGN, "answers": []}]),
        (ocrbench_docs.QUESTIONS, [{**SIGN, "type": "Poems"}]),
        (ocrbench_docs.QUESTIONS, [{**SIGN, "image_path": None}]),
    ],
)
def test_an_invalid_file_is_named(folder: Path, path: str, content: Any) -> None:
    write(folder, path, content)
    reader = {
        docvqa_docs.DOCVQA_QUESTIONS: docvqa_docs.read_documents,
        docvqa_docs.INFOVQA_QUESTIONS: docvqa_docs.read_infographics,
        ocrbench_docs.QUESTIONS: ocrbench_docs.read_questions,
    }.get(path, chartqa_docs.read_questions)
    with pytest.raises(UserError) as raised:
        reader(folder)
    assert path in str(raised.value)


def test_the_group_has_the_four_and_no_score(host_tasks: ModuleType) -> None:
    root = Path(__file__).resolve().parents[2]
    manager = host_tasks.TaskManager(include_defaults=False, include_path=str(root / "tasks"))
    config = manager._get_config("df_documents")
    assert config["task"] == list(TASKS)
    assert "aggregate_metric_list" not in config
