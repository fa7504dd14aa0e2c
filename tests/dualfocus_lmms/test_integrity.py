"""Fingerprints: the same for the same questions and images, another for any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dualfocus_lmms import Answer, Selection, Trace, UserError, integrity
from dualfocus_lmms.trace import TraceWriter

DOCS = [
    {
        "question_id": "1",
        "image": "/here/a.jpg",
        "question": "A cat?",
        "options": ["yes", "no"],
        "answer": "A",
    },
    {"question_id": "2", "image": "/here/b.jpg", "question": "A d\u00f6g?", "options": [], "answer": None},
]


def trace(doc_id: int, task: str = "df_local", context: str = "c", image: str = "i") -> Trace:
    return Trace(
        key={"task": task, "split": "test", "doc_id": doc_id, "context": context},
        question_id=str(doc_id),
        prompts={},
        image_size=(6, 4),
        image_hash=image,
        selection=Selection("macro", "yes", "macro", None),
        macro=Answer("macro", "yes", (1,), (-0.1,), ended=False),
    )


def test_a_folder_without_room_is_a_mistake(tmp_path: Path) -> None:
    TraceWriter(tmp_path).write([trace(0)])
    (tmp_path / "data.json").mkdir()  # no file can have this name
    with pytest.raises(UserError, match=r"data\.json"):
        integrity.write_data(tmp_path, {})


def test_questions_fingerprint_is_16_digits_and_stays() -> None:
    found = integrity.questions_fingerprint(DOCS)
    assert found == "328745e10149d1a1"  # results of another day are compared with it
    moved = [{**doc, "image": "/there/x.jpg", "questions_without_image": 3} for doc in DOCS]
    assert integrity.questions_fingerprint(moved) == found


@pytest.mark.parametrize(
    "changed",
    [
        DOCS[::-1],
        DOCS[:1],
        [{**DOCS[0], "question_id": "3"}, DOCS[1]],
        [{**DOCS[0], "question": "A cat? "}, DOCS[1]],
        [{**DOCS[0], "answer": "B"}, DOCS[1]],
        [{**DOCS[0], "options": ["no", "yes"]}, DOCS[1]],
        [{**DOCS[0], "hint": "look"}, DOCS[1]],
    ],
)
def test_any_change_gives_another(changed: list[dict[str, object]]) -> None:
    assert integrity.questions_fingerprint(changed) != integrity.questions_fingerprint(DOCS)


def test_a_data_set_counts_as_its_rows_and_its_images_are_not_read() -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{name: value for name, value in doc.items() if name != "image"} for doc in DOCS]
    plain = datasets.Dataset.from_list(rows)
    broken = [{"bytes": b"no picture", "path": None}] * 2
    hub = plain.add_column("photo", broken).cast_column("photo", datasets.Image())
    hub = hub.add_column("photos", [[cell] for cell in broken])
    hub = hub.cast_column("photos", datasets.Sequence(datasets.Image()))
    expected = integrity.questions_fingerprint(rows)
    assert integrity.questions_fingerprint(plain) == integrity.questions_fingerprint(hub) == expected
    marked = integrity.with_fingerprint(plain)
    assert marked["questions_fingerprint"] == [expected] * 2
    assert integrity.questions_fingerprint(marked) == expected


def test_describe_data_does_not_depend_on_the_order_of_the_traces() -> None:
    traces = [trace(0), trace(1, image="j"), trace(10), trace(0, task="df_other")]
    found = integrity.describe_data(traces)
    assert integrity.describe_data(reversed(traces)) == found
    assert {name: data["samples"] for name, data in found.items()} == {"df_local/test": 3, "df_other/test": 1}
    for other, same in (
        (replace(traces[1], image_hash="k"), "prompts"),
        (replace(traces[1], key={**traces[1].key, "context": "d"}), "images"),
    ):
        changed = integrity.describe_data([traces[0], other, *traces[2:]])
        differing = {
            name
            for name in ("prompts", "images")
            if changed["df_local/test"][name] != found["df_local/test"][name]
        }
        assert differing == {"prompts", "images"} - {same}


def test_write_data_keeps_what_it_knew_of_other_tasks(tmp_path: Path) -> None:
    def written(*traces: Trace, **documents: object) -> dict[str, dict[str, object]]:
        writer = TraceWriter(tmp_path)
        writer.write(traces)
        writer.close()
        integrity.write_data(tmp_path, {f"{name}/test": docs for name, docs in documents.items()})
        return json.loads((tmp_path / "data.json").read_text("utf-8"))

    first = written(trace(0), trace(1), df_local=DOCS)
    about = {"questions": 2, "questions_fingerprint": integrity.questions_fingerprint(DOCS)}
    assert first["df_local/test"] == integrity.describe_data([trace(0), trace(1)])["df_local/test"] | about
    second = written(trace(0, task="df_other"), df_other=DOCS[:1])
    assert second["df_local/test"] == first["df_local/test"]
    assert (second["df_other/test"]["samples"], second["df_other/test"]["questions"]) == (1, 1)


def test_write_data_reads_a_fingerprint_that_is_there(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    marked = integrity.with_fingerprint(datasets.Dataset.from_list(DOCS))
    for name, docs, expected in (
        ("whole", marked, integrity.questions_fingerprint(DOCS)),
        ("none", marked.select([]), integrity.questions_fingerprint([])),
    ):
        folder = tmp_path / name
        writer = TraceWriter(folder)
        writer.write([trace(0)])
        writer.close()
        integrity.write_data(folder, {"df_local/test": docs})
        assert integrity.read_data(folder)["df_local/test"]["questions_fingerprint"] == expected


def test_without_a_folder_there_is_nothing_to_describe(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        integrity.write_data(tmp_path / "nowhere", {})
