"""df_nano_*: which questions are asked, what they are about, and a run of the host on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from dualfocus_lmms import Box, read_traces, scene_layouts
from dualfocus_lmms.scenes import COLORS, SIDE, VERSION, Kind, make_scene
from dualfocus_lmms.tasks.nano import docs as nano_docs

Load = Callable[[str], dict[Any, Any]]
KINDS = get_args(Kind)
COLUMNS = {"image", "question", "answers", "box", "kind", "scene", "version"}


def test_there_are_enough_questions_and_no_answer_dominates():
    documents = {kind: nano_docs.questions("test", kind) for kind in KINDS}
    assert sum(map(len, documents.values())) >= 4000
    answers = {kind: Counter(doc["answers"][0] for doc in docs) for kind, docs in documents.items()}
    assert answers["exist"]["yes"] == answers["exist"]["no"] == len(documents["exist"]) / 2
    assert set(answers["detail"]) == set("0123456789")
    assert max(answers["detail"].values()) < 0.13 * len(documents["detail"])
    relations = answers["global"]["yes"] + answers["global"]["no"]
    assert abs(answers["global"]["yes"] / relations - 0.5) < 0.03
    assert relations == 2 * nano_docs.SCENES


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_contain_the_things_that_the_questions_name(kind: Kind):
    for doc in nano_docs.questions("test", kind)[:40]:
        (image,) = nano_docs.image(doc)
        left, top, right, bottom = (round(edge * SIDE) for edge in Box(*doc["box"]).xyxy)
        pixels = np.asarray(image)
        for color in COLORS.keys() & set(doc["question"].split()):
            same = np.all(pixels == COLORS[color], axis=2)
            share = same[top:bottom, left:right].mean()
            assert share > 0.35 if kind == "detail" else share > 0 or not same.any()
        if doc["question"].startswith("How many"):
            assert doc["box"] == [0, 0, 1, 1]


def test_the_scenes_of_a_split_are_made_once_for_all_kinds(monkeypatch: pytest.MonkeyPatch):
    made = []
    make = nano_docs.make_scenes
    monkeypatch.setattr(nano_docs, "make_scenes", lambda *given: made.append(given) or make(*given))
    nano_docs._scenes.cache_clear()
    for kind in get_args(Kind) * 2:
        nano_docs.questions("validation", kind)
    assert made == [("validation", nano_docs.SEED, nano_docs.SCENES)]


def test_threads_draw_the_same_scenes():
    docs = nano_docs.questions("test", "exist")[:40]
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(nano_docs.image, docs))
    for doc, (image,) in zip(docs, images, strict=True):
        assert (image.mode, image.size) == ("RGB", (SIDE, SIDE))
        assert image.tobytes() == make_scene("test", nano_docs.SEED, doc["scene"]).image().tobytes()


@pytest.mark.parametrize(("group", "split"), [("df_nano", "test"), ("df_nano_validation", "validation")])
def test_the_host_loads_the_groups(load_task: Load, group: str, split: str):
    ((config, tasks),) = load_task(group).items()
    assert set(tasks) == {f"{group}_{kind}" for kind in KINDS}
    assert config.config["metadata"]["version"] == VERSION
    for kind, task in ((name.rsplit("_", 1)[1], task) for name, task in tasks.items()):
        docs = task.test_docs()
        assert set(docs.column_names) == COLUMNS
        assert list(docs) == nano_docs.questions(split, kind)
        assert task.config.metadata["version"] == docs[0]["version"] == VERSION
        assert task.config.metadata["dualfocus"] == {"question": "question", "box": "box"}


@pytest.mark.parametrize(
    ("name", "layout", "scenes", "kinds"),
    [
        ("df_nano_pairs_near", "near", nano_docs.PAIR_SCENES, {"larger": 300, "same": 300}),
        ("df_nano_pairs_apart", "apart", nano_docs.PAIR_SCENES, {"larger": 300, "same": 300}),
        ("df_nano_tiny", "tiny", nano_docs.TINY_SCENES, {"detail": 600}),
    ],
)
def test_the_host_loads_the_layouts(
    load_task: Load, name: str, layout: Any, scenes: int, kinds: dict[str, int]
):
    task = load_task(name)[name]
    docs = list(task.test_docs())
    assert docs == nano_docs.layout_questions("test", layout, scenes)
    assert Counter(doc["kind"] for doc in docs) == kinds
    assert set(docs[0]) == COLUMNS | {"boxes"}
    assert task.config.metadata["version"] == docs[0]["version"] == scene_layouts.VERSION
    assert task.config.metadata["dualfocus"] == {"question": "question", "box": "box", "boxes": "boxes"}
    for doc in docs[:40]:
        assert len(doc["boxes"]) == (1 if layout == "tiny" else 2)
        assert Box.around(Box(*box) for box in doc["boxes"]).xyxy == tuple(doc["box"])
    (image,) = task.doc_to_visual(docs[0])
    assert image.tobytes() == scene_layouts.make_layout(layout, "test", 0, docs[0]["scene"]).image().tobytes()


def test_the_pairs_are_one_group(load_task: Load):
    ((config, tasks),) = load_task("df_nano_pairs").items()
    assert set(tasks) == {"df_nano_pairs_near", "df_nano_pairs_apart"}
    assert config.config["metadata"]["version"] == scene_layouts.VERSION


def test_a_question_is_asked_and_scored(load_task: Load):
    task = load_task("df_nano_detail")["df_nano_detail"]
    doc = task.test_docs()[0]
    (answer,) = doc["answers"]
    assert task.doc_to_text(doc) == (f"{doc['question']}\nAnswer the question using a single word or phrase.")
    assert task.doc_to_visual(doc)[0].size == (SIDE, SIDE)
    assert task.process_results(doc, [f"{answer}."]) == {"accuracy": 100.0}
    assert task.process_results(doc, [f"{answer} {answer}"]) == {"accuracy": 0.0}
    task.build_all_requests(limit=1)
    (request,) = task.instances
    assert request.metadata["dualfocus"]["box"] == "box"
    assert request.arguments[1]["max_new_tokens"] == 16


def test_every_question_counts_the_same_in_the_group(load_task: Load):
    utils = pytest.importorskip("lmms_eval.evaluator_utils")
    tasks = load_task("df_nano")
    results: dict[str, Any] = {
        f"df_nano_{kind}": {"accuracy,none": score, "accuracy_stderr,none": "N/A", "samples": samples}
        for kind, score, samples in (("detail", 10.0, 100), ("exist", 20.0, 200), ("global", 90.0, 700))
    }
    results["df_nano"] = {}
    utils.consolidate_group_results(results, {}, tasks)
    assert results["df_nano"]["accuracy,none"] == pytest.approx(68.0)
    assert results["df_nano"]["samples"] == 1000


def test_the_host_runs_a_task(tiny_checkpoint: Path, run_command: Callable[..., Any], tmp_path: Path):
    environment = {"LMMS_EVAL_DATASETS_CACHE": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true"}
    model_args = f"pretrained={tiny_checkpoint},batch_size=4,trace={tmp_path / 'trace'}"
    done = run_command(
        "dualfocus", "eval", "--tasks", "df_nano_exist", "--limit", "4",
        "--output_path", str(tmp_path / "out"), "--model_args", model_args,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    traces, damaged = read_traces(tmp_path / "trace")
    assert damaged == []
    traces.sort(key=lambda trace: trace.key["doc_id"])
    documents = nano_docs.questions("test", "exist")[:4]
    assert [trace.key["doc_id"] for trace in traces] == [0, 1, 2, 3]
    replies = [trace.selection.text.lower() for trace in traces]
    correct = [reply in doc["answers"] for reply, doc in zip(replies, documents, strict=True)]
    assert results["results"]["df_nano_exist"]["accuracy,none"] == pytest.approx(25.0 * sum(correct))
    assert results["versions"]["df_nano_exist"] == VERSION
