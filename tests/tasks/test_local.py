"""df_local through the host, and every kind of line it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from dualfocus_lmms import UserError
from dualfocus_lmms.tasks.common import sources
from dualfocus_lmms.tasks.local import docs as local_docs

GOOD = {"image": "red.png", "question": "What colour is it?", "answer": "red"}


@pytest.fixture
def folder(tmp_path: Path, save_image: Callable[[Path], None]) -> Path:
    save_image(tmp_path / "red.png")
    return tmp_path


def test_questions_are_one_table_in_however_many_parts(
    folder: Path, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options are empty lists in the first part and the last, and texts in the second."""
    choice = {**GOOD, "answer": "a dog", "options": ["a cat", "a dog"]}
    rows = [GOOD, GOOD, GOOD, choice, {**GOOD, "answer": ["red", "crimson"]}]
    monkeypatch.setenv("DUALFOCUS_LOCAL", str(write_lines(folder / "mine.jsonl", rows)))
    whole = local_docs.documents(None)
    monkeypatch.setattr(sources, "_AT_ONCE", 2)
    parts = local_docs.documents(None)
    assert len(parts) == 5
    assert list(parts) == list(whole)
    assert parts.features == whole.features


def test_documents(
    load_task: Callable[[str], dict[Any, Any]],
    folder: Path,
    write_lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choice = {**GOOD, "answer": ["a dog", "C"], "options": ["a cat", "a dog", "a cow"]}
    file = write_lines(folder / "mine.jsonl", [{**GOOD, "answer": ["red", "crimson"]}, choice, GOOD])
    monkeypatch.setenv("DUALFOCUS_LOCAL", str(file))
    task = load_task("df_local")["df_local"]
    words, letters, _ = task.test_docs()
    assert words[task.config.metadata["dualfocus"]["question"]] == "What colour is it?"
    assert task.doc_to_text(words) == "What colour is it?\nAnswer the question using a single word or phrase."
    assert task.doc_to_text(letters) == (
        "What colour is it?\nA. a cat\nB. a dog\nC. a cow\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (words["answers"], letters["answers"]) == (["red", "crimson"], ["B", "C"])
    assert task.doc_to_visual(words)[0].size == (6, 4)
    assert task.process_results(words, ["Crimson."]) == {"accuracy": 100.0}
    assert task.process_results(letters, ["The answer is C."]) == {"accuracy": 100.0}
    assert task.process_results(letters, ["a cat"]) == {"accuracy": 0.0}


def test_a_truncated_image_raises_though_the_host_would_pad_it(
    tmp_path: Path, noise: Callable[[int, int], Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as the host sets it
    path = tmp_path / "cut.png"
    noise(60, 50).save(path)
    assert sources.images({"image": str(path)})[0].size == (60, 50)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError):
        sources.images({"image": str(path)})


@pytest.mark.parametrize(
    "line",
    [
        "{not json",
        "[1, 2]",
        '{"question": "q", "answer": "a"}',
        '{"image": "gone.png", "question": "q", "answer": "a"}',
        '{"image": "red.png", "question": " ", "answer": "a"}',
        '{"image": "red.png", "question": "q"}',
        '{"image": "red.png", "question": "q", "answer": []}',
        '{"image": "red.png", "question": "q", "answer": 3}',
        '{"image": "red.png", "question": "q", "answer": "."}',
        '{"image": "red.png", "question": "q", "answer": "c", "options": ["a cat", "a dog"]}',
        '{"image": "red.png", "question": "q", "answer": "C", "options": ["a cat", "a dog"]}',
        '{"image": "red.png", "question": "q", "answer": "a cat", "options": ["a cat"]}',
        '{"image": "red.png", "question": "q", "answer": "a cat", "options": ["a cat", "A cat."]}',
        '{"image": "red.png", "question": "q", "answer": "a cat", "options": "a cat"}',
    ],
)
def test_an_invalid_line_raises(folder: Path, line: str) -> None:
    good = '{"image": "red.png", "question": "q", "answer": "a"}\n\n'
    file = folder / "mine.jsonl"
    file.write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.jsonl:3"):
        local_docs.read_questions(file)


ROWS = [GOOD, {**GOOD, "question": 'A "cat", or\na dog?', "answer": "B", "options": ["a cat", "a dog, or 2"]}]


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_and_csv_are_read_like_json_lines(folder: Path, indent: int | None) -> None:
    lines, array, table = folder / "a.jsonl", folder / "a.json", folder / "a.csv"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    array.write_text(json.dumps(ROWS, indent=indent))
    with table.open("w", newline="", encoding="utf-8-sig") as file:  # as Excel writes it
        writer = csv.DictWriter(file, ["image", "question", "answer", "options"])
        writer.writeheader()
        writer.writerows(
            {**row, "options": json.dumps(row["options"]) if "options" in row else ""} for row in ROWS
        )
    expected = local_docs.read_questions(lines)
    assert [doc["answers"] for doc in expected] == [["red"], ["B"]]
    assert local_docs.read_questions(array) == expected
    assert local_docs.read_questions(table) == expected


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.json", '[{"image": "red.png", "question": "q", "answer": "a"}, 3]', r"a\.json, object 2"),
        ("a.json", '[\n{"image": "red.png",\n"question": "q"}]', r"a\.json, object 1"),
        ("a.json", '[{"image": "red.png"', r"a\.json:1"),
        ("a.csv", "image,question,answer\nred.png,q,a\nred.png,q\n", r"a\.csv:3"),
        ("a.csv", "image,question,answer\nred.png,q,a,b\n", r"a\.csv:2"),
        ("a.csv", "image,question,answer,options\nred.png,q,a,[a\n", r"a\.csv:2"),
        ("a.csv", "image;question;answer\nred.png;q;a\n", r"a\.csv:2: 'image'"),
        ("a.tsv", "image\tquestion\tanswer\n\tq\ta\n", r"a\.tsv:2: 'image'"),
    ],
)
def test_a_fault_of_an_array_or_of_csv_has_its_place(folder: Path, name: str, text: str, where: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=where):
        local_docs.read_questions(folder / name)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image": "https://host.example/red.png"}, "address"),
        ({"options": ["red"]}, "'red'"),
        ({"options": [f"red {number}" for number in range(27)]}, "27 options"),
    ],
)
def test_what_cannot_be_asked_is_told_why(folder: Path, change: dict[str, Any], word: str) -> None:
    (folder / "a.jsonl").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(UserError, match=word):
        local_docs.read_questions(folder / "a.jsonl")


def test_without_the_variable_the_task_raises(
    load_task: Callable[[str], dict[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DUALFOCUS_LOCAL", raising=False)
    with pytest.raises(UserError, match="set DUALFOCUS_LOCAL"):
        load_task("df_local")


@pytest.mark.parametrize("content", ["", "\n\n", None])
def test_an_empty_or_missing_file_raises(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "mine.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.jsonl"):
        local_docs.read_questions(file)


def test_a_file_that_is_not_text_raises(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"mine\.jsonl"):
        local_docs.read_questions(file)


def test_half_a_surrogate_pair_raises_with_its_line(tmp_path: Path) -> None:
    """No tokenizer takes one; whole pairs are characters."""
    (tmp_path / "a.png").touch()
    rows = [
        f'{{"image": "a.png", "question": "What is {escaped}?", "answer": "a"}}'
        for escaped in ("\\ud83d\\ude00", "\\ud83d")
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text(rows[0], encoding="utf-8")
    assert local_docs.read_questions(file)[0]["question"] == "What is \U0001f600?"
    file.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.jsonl:2"):
        local_docs.read_questions(file)


def test_sixteen_bit_grey_is_not_white(tmp_path: Path) -> None:
    Image.new("I;16", (2, 2), 100 * 257).save(tmp_path / "deep.png")
    (image,) = sources.images({"image": str(tmp_path / "deep.png")})
    assert image.getpixel((0, 0)) == (100, 100, 100)
    Image.new("F", (2, 2), 0.5).save(tmp_path / "depth.tiff")
    with pytest.raises(UserError, match=r"depth\.tiff"):
        sources.images({"image": str(tmp_path / "depth.tiff")})


def test_an_unreadable_image_raises(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        sources.images({"image": str(broken)})


def test_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    (image,) = sources.images({"image": str(tmp_path / "turned.jpg")})
    assert image.size == (4, 6)


def test_every_bad_line_is_named_up_to_a_number(folder: Path) -> None:
    good = '{"image": "red.png", "question": "q", "answer": "a"}'
    file = folder / "mine.jsonl"
    file.write_bytes("\n".join([good, "{", good, *['{"image": 3}'] * 24]).encode() + b"\n\xff\n")
    with pytest.raises(UserError) as refused:
        local_docs.read_questions(file)
    lines = str(refused.value).splitlines()
    assert "26 faults" in lines[0]
    assert ["mine.jsonl:2:" in lines[1], "mine.jsonl:4:" in lines[2], "mine.jsonl:22:" in lines[20]] == [
        True
    ] * 3
    assert lines[21:] == ["  and 6 more like these"]


def test_every_unreadable_image_is_named_before_a_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:50])
    (folder / "text.png").write_text("no image")
    names = ["red.png", "cut.png", "red.png", "cut.png", "text.png"]
    rows = [{"image": name, "question": "q", "answer": "a"} for name in names]
    file = folder / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setenv("DUALFOCUS_LOCAL", str(file))
    with pytest.raises(UserError) as refused:
        local_docs.check()
    assert [place in str(refused.value) for place in (":2:", ":4:", ":5:")] == [True, False, True]
    with pytest.raises(UserError, match=r"mine\.jsonl:2: .*cut\.png"):
        local_docs.check(limit=4)
    local_docs.check(limit=1)


def test_the_command_refuses_a_bad_file_before_it_loads_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., Any]
) -> None:
    (folder / "mine.jsonl").write_text("{", encoding="utf-8")
    monkeypatch.setenv("DUALFOCUS_LOCAL", str(folder / "mine.jsonl"))
    done = run_command(
        "dualfocus", "eval", "--model_args", f"pretrained={folder / 'no-such-model'}", "--tasks", "df_local"
    )
    assert done.returncode == 2
    assert "mine.jsonl:1" in done.stderr
    assert "no-such-model" not in done.stderr
