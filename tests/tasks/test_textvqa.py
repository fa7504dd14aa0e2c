"""df_textvqa_val and df_textvqa_val_ocr: documents, prompts, and LLaVA's own answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from PIL import Image

from dualfocus_lmms import UserError
from dualfocus_lmms.integrity import questions_fingerprint
from dualfocus_lmms.tasks.common.scoring import NO_ANSWER
from dualfocus_lmms.tasks.textvqa import docs as textvqa_docs

Load = Callable[[str], dict[Any, Any]]
TASKS = ("df_textvqa_val", "df_textvqa_val_ocr")
SHORT = "Answer the question using a single word or phrase."
ROWS = [
    {
        "question_id": 31,
        "image_id": "aa01",
        "question": "what does the sign say?",
        "answers": ["stop"] * 3 + [f"other {n}" for n in range(7)],
    },
    {"question_id": 32, "image_id": "aa01", "question": "what colour is it?", "answers": ["red"] * 10},
    {"question_id": 33, "image_id": "gone", "question": "who made this?", "answers": ["nokia"] * 10},
]
PROMPTS = [
    {"question_id": row["image_id"], "text": f"{text}\nReference OCR token: {tokens}\n{SHORT}"}
    for row, text, tokens in zip(
        ROWS, ("What does the sign say?", "What colour is it?", "Who made this?"), ("STOP, 4", "", "NOKIA"),
        strict=True,
    )
]  # fmt: skip


@pytest.fixture
def folder(
    tmp_path: Path,
    save_image: Callable[[Path], None],
    write_lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A DUALFOCUS_DATA folder of three questions; the third one's image is missing."""
    (tmp_path / "textvqa" / "train_images").mkdir(parents=True)
    save_image(tmp_path / "textvqa" / "train_images" / "aa01.jpg")
    write(tmp_path, {"data": ROWS})
    write_lines(tmp_path / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl", PROMPTS)
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return tmp_path


def write(folder: Path, content: Any) -> None:
    (folder / "textvqa" / "TextVQA_0.5.1_val.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", TASKS)
def test_documents_and_scores(load_task: Load, folder: Path, name: str) -> None:
    task = load_task(name)[name]
    first, second = docs = list(task.test_docs())
    assert first[task.config.metadata["dualfocus"]["question"]] == "What does the sign say?"
    assert task.doc_to_visual(first)[0].size == (6, 4)
    assert task.process_results(first, ["Stop."]) == {
        "accuracy": pytest.approx(90.0),
        "questions_without_image": 1,
        "questions_fingerprint": questions_fingerprint(docs),
    }
    assert task.process_results(second, ["blue"])["accuracy"] == 0.0
    prompts = [task.doc_to_text(doc) for doc in (first, second)]
    if name == "df_textvqa_val_ocr":
        assert prompts == [row["text"] for row in PROMPTS[:2]]
    else:
        assert prompts == [f"What does the sign say?\n{SHORT}", f"What colour is it?\n{SHORT}"]


@pytest.mark.parametrize("name", TASKS)
def test_a_tiny_model_answers_it(
    load_task: Load, folder: Path, run_tiny: Callable[[Any], dict[str, Any]], name: str
) -> None:
    scores = run_tiny(load_task(name)[name])
    assert scores.pop("questions_without_image") == 1
    assert len(scores.pop("questions_fingerprint")) == 16
    assert scores == {"accuracy": 0.0}  # it knows neither "stop" nor "red"


def test_no_answer_is_wrong_even_where_an_empty_reply_is_correct() -> None:
    doc = {"answers": ["a"] * 10, "questions_without_image": 0, "questions_fingerprint": "0123"}
    assert textvqa_docs.textvqa_results(doc, [""])["accuracy"] == 100.0
    assert textvqa_docs.textvqa_results(doc, [NO_ANSWER])["accuracy"] == 0.0


@pytest.mark.parametrize("protocol", ["paper", "release"])
@pytest.mark.parametrize("name", TASKS)
def test_golden_prompts(
    load_task: Load,
    folder: Path,
    first_prompts: Callable[[Any, str], str],
    golden: Callable[[str, str], None],
    name: str,
    protocol: str,
) -> None:
    golden(f"{name}_{protocol}.txt", first_prompts(load_task(name)[name], protocol))


def test_the_hub_and_the_files_have_the_same_questions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    from_files = textvqa_docs.read_ocr_questions(folder)
    monkeypatch.delenv("DUALFOCUS_DATA")
    assert (textvqa_docs.DATASET_PATH, textvqa_docs.DATASET_KWARGS) == ("lmms-lab-encoder/textvqa", None)
    rows = [
        {**row, "image": Image.new("L", (6, 4)), "ocr_tokens": tokens}
        for row, tokens in zip(ROWS[:2], (["STOP", "4"], []), strict=True)
    ]
    hub = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    plain, ocr = textvqa_docs.documents(hub), textvqa_docs.ocr_documents(hub)
    assert [textvqa_docs.ocr_prompt(doc) for doc in ocr] == [
        textvqa_docs.ocr_prompt(doc) for doc in from_files
    ]
    assert [textvqa_docs.prompt(doc) for doc in plain] == [textvqa_docs.prompt(doc) for doc in from_files]
    assert [doc["questions_without_image"] for doc in plain] == [0, 0]
    assert plain[0]["answers"] == ROWS[0]["answers"]


def test_a_question_without_a_prompt_raises(folder: Path, write_lines: Callable[..., Path]) -> None:
    write_lines(folder / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl", PROMPTS[1:])
    with pytest.raises(UserError, match="aa01"):
        textvqa_docs.read_ocr_questions(folder)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"data": []},
        {"data": ["what?"]},
        {"data": [{**ROWS[0], "answers": ["stop"] * 9}]},
        {"data": [{**ROWS[0], "answers": [1] * 10}]},
        {"data": [{**ROWS[0], "answers": None}]},
        {"data": [{**ROWS[0], "question": ""}]},
        {"data": [{**ROWS[0], "image_id": None}]},
    ],
)
def test_an_invalid_file_raises(folder: Path, content: Any) -> None:
    write(folder, content)
    with pytest.raises(UserError, match=r"TextVQA_0\.5\.1_val\.json"):
        textvqa_docs.read_questions(folder)


@pytest.mark.parametrize("lost", ["TextVQA_0.5.1_val.json", "llava_textvqa_val_v051_ocr.jsonl"])
def test_missing_files_are_named(load_task: Load, folder: Path, lost: str) -> None:
    (folder / "textvqa" / lost).unlink()
    with pytest.raises(UserError, match=lost):
        load_task("df_textvqa_val_ocr")


def test_llavas_answers_to_real_questions(
    load_task: Load, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaVA-1.5-13B's released answers to the five questions whose ground truth and images are there."""
    data, folder = shared_data / "data", tmp_path / "textvqa"
    folder.mkdir()
    (folder / "train_images").symlink_to(data / "textvqa" / "images")
    (folder / "TextVQA_0.5.1_val.json").symlink_to(data / "textvqa" / "TextVQA_0.5.1_val.json")
    ocr = "llava_textvqa_val_v051_ocr.jsonl"
    (folder / ocr).symlink_to(data / "llava_eval" / "textvqa" / ocr)
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    task = load_task("df_textvqa_val_ocr")["df_textvqa_val_ocr"]
    lines = (data / "llava_eval" / "textvqa" / "answers_llava-v1.5-13b.jsonl").read_text("utf-8").splitlines()
    replies = {row["prompt"]: row["text"] for row in map(json.loads, lines[:5])}
    docs = list(task.test_docs())
    assert {task.doc_to_text(doc) for doc in docs} == set(replies)
    scores = [task.process_results(doc, [replies[task.doc_to_text(doc)]])["accuracy"] for doc in docs]
    assert scores == pytest.approx([90.0, 0.0, 100.0, 0.0, 100.0])
    assert fmean(scores) == pytest.approx(58.0)


def test_prompts_equal_llavas(shared_data: Path) -> None:
    """From the words and tokens of LLaVA's 5,000 prompts, as a hub document holds them."""
    file = shared_data / "data" / "llava_eval" / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(texts) == 5_000
    for text in texts:
        question, line, _ = text.split("\n")
        tokens = line.removeprefix("Reference OCR token: ")
        doc = {"question": question, "ocr_tokens": tokens.split(", ") if tokens else []}
        assert textvqa_docs.ocr_prompt(doc) == text
