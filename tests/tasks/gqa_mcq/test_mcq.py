"""dualfocus data gqa-mcq offline: the file it writes, what it refuses, and the task that reads it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.tasks.gqa import mcq as gqa_mcq
from dualfocus_lmms.tasks.gqa_star import docs as gqa_star_docs

Lines = Callable[[Path], dict[str, Any]]
build = partial(gqa_mcq.build, progress=False)


def test_lines_have_the_published_format_and_a_source(
    questions: Path, tmp_path: Path, rows: dict[str, Any], lines: Lines
):
    report = build(questions, tmp_path / "out.jsonl", seed=3)
    written = lines(tmp_path / "out.jsonl")
    assert list(written) == list(rows)
    for id, line in written.items():
        bare, *labelled = line["question"].split("\n")
        assert bare == rows[id]["question"]
        assert [option[:3] for option in labelled] == ["A. ", "B. ", "C. ", "D. "][: len(labelled)]
        assert line["image"] == f"{rows[id]['imageId']}.jpg"
        assert line["source"] == "offline:seed3"
        assert line["answer"] == rows[id]["answer"]
        assert line["options"].count(line["answer"]) == 1
    assert report.options == {2: 3, 4: 24}
    assert report.chance == pytest.approx(100 * (3 / 2 + 24 / 4) / 27)
    assert (report.written, report.before, report.failures, report.cost) == (27, 0, {}, None)


def test_options_depend_on_seed_and_id_only(questions: Path, tmp_path: Path, lines: Lines):
    files = [tmp_path / name for name in ("first", "again", "other", "part")]
    for file, seed in zip(files, (0, 0, 1, 0), strict=True):
        build(questions, file, seed=seed, limit=5 if file.name == "part" else None)
    first, again, _, part = (file.read_bytes() for file in files)
    assert first == again
    assert first.startswith(part)
    assert len(part.splitlines()) == 5
    orders = [[line["options"] for line in lines(file).values()] for file in (files[0], files[2])]
    assert orders[0] != orders[1]
    positions = Counter(
        line["options"].index(line["answer"]) for file in files[:3] for line in lines(file).values()
    )
    assert set(positions) == {0, 1, 2, 3}


def test_an_interrupted_run_ends_with_the_same_file(questions: Path, tmp_path: Path):
    build(questions, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for length in (0, 5, 17, 400, whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        cut = tmp_path / "cut.jsonl"
        cut.write_bytes(whole[:length])
        report = build(questions, cut)
        assert cut.read_bytes() == whole
        assert report.before == whole[:length].count(b"\n")
        assert report.options == {2: 3, 4: 24}


def test_default_names_contain_the_source(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: Lines
):
    monkeypatch.chdir(tmp_path)
    build(questions, seed=2)
    assert len(lines(tmp_path / "llava_gqa_testdev_balanced_mcq_offline-seed2.jsonl")) == 27
    name = gqa_mcq.default_path(gqa_mcq.source_label("org/chat_3.5:free", 0)).name
    assert name == "llava_gqa_testdev_balanced_mcq_endpoint-org-chat-3.5-free-seed0.jsonl"


def test_a_question_without_others_of_its_kind_is_a_failure(tmp_path: Path, row: Callable[..., Any]):
    file = tmp_path / "questions.json"
    file.write_text(json.dumps({"7": row("What is it?", "dog", "n1", "query obj name")}), encoding="utf-8")
    report = build(file, tmp_path / "out.jsonl")
    assert (list(report.failures), report.written, report.chance) == (["7"], 0, None)
    assert json.loads((tmp_path / "out.jsonl.report.json").read_text("utf-8"))["failures"] == report.failures


def test_other_files_raise_and_are_not_changed(questions: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    build(questions, out)
    own = out.read_text("utf-8").splitlines()[0]
    published = json.dumps(
        {"question_id": "c0", "image": "n0.jpg", "question": "What color is it, 0?\nA. red"}
    )
    texts = [
        questions.read_text("utf-8"),
        "[1]\n",
        f"{published}\n{published}",
        f"{own}\n{own[:40]}\n",
        f"{own}\n".replace("offline:seed0", "offline:seed1") + own[:30],
        f"{own}\n".replace("color", "colour"),
        f"{own}\n".replace('"c0"', '"c99"'),
        "\ufffd\u00e9",
    ]
    for text in texts:
        out.write_text(text, encoding="utf-8")
        with pytest.raises(UserError):
            build(questions, out)
        assert out.read_text("utf-8") == text
    with pytest.raises(UserError):
        build(questions, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": "http://127.0.0.1:1"},
        {"model": "chat"},
        {"endpoint": "127.0.0.1:1", "model": "chat"},
        {"endpoint": "http://127.0.0.1:1", "model": "chat", "price_in": 1.0},
        {"price_in": 1.0, "price_out": 1.0},
    ],
)
def test_incompatible_settings_raise(settings: dict[str, Any], questions: Path, tmp_path: Path):
    with pytest.raises(UserError):
        build(questions, tmp_path / "out.jsonl", **settings)
    assert not (tmp_path / "out.jsonl").exists()


def test_df_gqa_star_reads_the_file(tmp_path: Path, save_image: Callable[[Path], None], rows: dict[str, Any]):
    (tmp_path / "gqa" / "images").mkdir(parents=True)
    present = {id: row for id, row in rows.items() if row["imageId"] in ("n0", "n1")}
    for image in ("n0", "n1"):
        save_image(tmp_path / "gqa" / "images" / f"{image}.jpg")
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    build(file, tmp_path / gqa_star_docs.CHOICES, seed=5)
    docs = gqa_star_docs.read_questions(tmp_path)
    assert {doc["question_id"]: doc["answer"] for doc in docs} == {
        id: row["answer"] for id, row in present.items()
    }
    assert {doc["source"] for doc in docs} == {"offline:seed5"}
    for doc in docs:
        assert doc["question"] == rows[doc["question_id"]]["question"]
        correct = "ABCD"[doc["options"].index(doc["answer"])]
        assert gqa_star_docs.is_correct(correct, doc["options"], doc["answer"])


def test_real_questions(shared_data: Path, tmp_path: Path, row: Callable[..., Any], lines: Lines):
    """Real questions. LLaVA's answers stand in for GQA's, and a question's first words for its type."""
    folder = shared_data / "data" / "llava_eval" / "gqa"
    published = [
        json.loads(line) for line in (folder / "llava_gqa_testdev_balanced.jsonl").open(encoding="utf-8")
    ]
    replies = [json.loads(line) for line in (folder / "answers_llava-v1.5-13b.jsonl").open(encoding="utf-8")]
    answers = {line["question_id"]: line["text"].lower() for line in replies}
    rows = {}
    for line in published:
        text, answer = line["text"].split("\n")[0], answers[line["question_id"]]
        structural = "verify" if answer in ("yes", "no") else "query"
        types = f"{structural} rel {'-'.join(text.split()[:2]).lower()}"
        rows[line["question_id"]] = row(text, answer, line["image"].removesuffix(".jpg"), types)
    file, out = tmp_path / "questions.json", tmp_path / "out.jsonl"
    file.write_text(json.dumps(rows), encoding="utf-8")
    report = build(file, out, limit=3000)
    assert (report.questions, report.written, report.failures) == (3000, 3000, {})
    written = lines(out)
    assert list(written) == list(rows)[:3000]
    for id, line in written.items():
        found = line["options"]
        assert found.count(rows[id]["answer"]) == 1
        assert len({text.casefold() for text in found}) == len(found)
    closed = sum(answer in ("yes", "no") for answer in list(answers.values())[:3000])
    assert report.options[2] >= closed > 1000
    assert report.options[4] > 0.8 * (3000 - closed)
