"""What answers are worth: known answers to known questions, scored by the tasks themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualfocus_lmms import Selection, Trace, UserError
from dualfocus_lmms.results.outcomes import number, outcomes, overlaps, question_key
from dualfocus_lmms.results.runs import TaskRun, load_run
from dualfocus_lmms.results.summary import summary

pytest.importorskip("lmms_eval.tasks")

Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four questions of df_local; their images are not there."""
    rows = [
        {"image": "a.png", "question": "What is it?", "answer": ["cat", "kitten"]},
        {"image": "a.png", "question": "What colour?", "answer": "red"},
        {"image": "a.png", "question": "How many?", "answer": "two"},
        {"image": "a.png", "question": "Which?", "answer": "a dog", "options": ["a dog", "a cat"]},
    ]
    file = write_lines(tmp_path / "local.jsonl", rows)
    monkeypatch.setenv("DUALFOCUS_LOCAL", str(file))
    return file


def asked(trace: Trace, prompt: str, chosen: str = "macro") -> Trace:
    answer = trace.micro if chosen == "micro" and trace.micro is not None else trace.macro
    return replace(
        trace, prompts={"macro": prompt}, selection=Selection(answer.pathway, answer.text, "ppl", 0.1)
    )


@pytest.fixture
def run(tmp_path: Path, local: Path, trace_of: Make, write_traces: Make) -> TaskRun:
    """Three answers, in another order on disk: macro right, micro right and chosen, no second look."""
    short = "Answer the question using a single word or phrase."
    options = "A. a dog\nB. a cat\nAnswer with the option's letter from the given choices directly."
    traces = [
        asked(trace_of(3, macro="A", micro=None), f"Which?\n{options}"),
        asked(trace_of(0, macro="Kitten.", micro="dog"), f"What is it?\n{short}"),
        asked(trace_of(1, macro="blue", micro="Red"), f"What colour?\n{short}", "micro"),
    ]
    return load_run(write_traces(tmp_path / "traces", traces)).tasks["df_local"]


def test_the_summary_has_the_scores_of_both_answers_and_their_cost(run: TaskRun, tmp_path: Path) -> None:
    *_, row = summary(tmp_path / "traces").splitlines()
    assert row.split() == ["df_local", "3", "66.7", "66.7", "100.0", "33", "0.00"]


def test_the_summary_says_what_is_not_scored(run: TaskRun, tmp_path: Path, local: Path) -> None:
    local.unlink()
    *_, row, note = summary(tmp_path / "traces").splitlines()
    assert row.split() == ["df_local", "3", "-", "-", "-", "33", "0.00"]
    assert str(local) in note


def test_every_pathway_has_its_score(run: TaskRun) -> None:
    found = outcomes(run)
    table = found.table
    assert (found.task, found.metric) == ("df_local", "accuracy")
    assert table["doc_id"].tolist() == [0, 1, 3]
    assert table["macro"].tolist() == [100, 0, 100]
    np.testing.assert_array_equal(table["micro"], [0, 100, np.nan])
    assert table["selected"].tolist() == [100, 100, 100]
    assert table["oracle"].tolist() == [100, 100, 100]
    assert table["pathway"].tolist() == ["macro", "micro", "macro"]
    assert table["fallback"].tolist() == [None, None, "no_box"]
    assert table["question"].tolist() == ["What is it?", "What colour?", "Which?"]
    assert [list(answers) for answers in table["answers"]] == [["cat", "kitten"], ["red"], ["A"]]
    assert table["text_macro"].tolist() == ["Kitten.", "blue", "A"]
    assert table["text_micro"].tolist() == ["dog", "Red", None]
    np.testing.assert_allclose(table["nll_macro"], [0.1, 0.1, 0.1])
    np.testing.assert_allclose(table["nll_micro"], [0.2, 0.2, np.nan])
    np.testing.assert_allclose(table["ppl_micro"], np.exp(table["nll_micro"]))
    np.testing.assert_allclose(table["confidence_macro"], np.exp(-0.1))
    assert table["iou"].isna().all()  # the task annotates no region


def test_the_tasks_own_aggregation_of_each_pathway(run: TaskRun) -> None:
    found = outcomes(run)
    values = {
        pathway: found.aggregates(pathway)[0].value for pathway in ("macro", "micro", "selected", "oracle")
    }
    # The answer without a second look counts for micro too: 0, 100, 100.
    assert values == pytest.approx({"macro": 200 / 3, "micro": 200 / 3, "selected": 100, "oracle": 100})
    assert found.texts("micro") == ["dog", "Red", "A"]
    assert found.aggregates("macro")[0].samples == 3


def test_other_questions_than_the_runs_are_refused(run: TaskRun, local: Path) -> None:
    assert outcomes(run).table["question"].tolist() == ["What is it?", "What colour?", "Which?"]
    rows = [json.loads(line) for line in local.read_text().splitlines()]
    (local.parent / "a.png").touch()
    write_lines(local, [rows[1], rows[0], *rows[2:]])
    with pytest.raises(UserError, match="df_local"):
        outcomes(run)
    write_lines(local, rows[:2])
    with pytest.raises(UserError, match="df_local"):
        outcomes(run)


@pytest.fixture
def pope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """POPE with four questions, the first one's image missing."""
    from PIL import Image

    labels = ["no", "yes", "yes", "no"]
    rows = [
        {"question_id": place, "image": f"{place}.png", "text": f"Is there a thing {place}?", "label": label}
        for place, label in enumerate(labels)
    ]
    for split in ("random", "popular", "adversarial"):
        write_lines(tmp_path / "pope" / f"coco_pope_{split}.json", rows)
    images = tmp_path / "pope" / "images"
    images.mkdir()
    for place in (1, 2, 3):
        Image.new("RGB", (6, 4)).save(images / f"{place}.png")
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("known", [True, False])
def test_doc_ids_count_the_questions_that_had_an_image(
    pope: Path, trace_of: Make, write_traces: Make, known: bool
) -> None:
    """By the fingerprint, or where a killed run left none, by the prompts."""
    prompt = "Is there a thing {}?\nAnswer the question using a single word or phrase."
    replies = [("yes", "no"), ("no", "yes"), ("yes", "no")]  # labels of 1, 2, 3: yes, yes, no
    traces = [
        asked(trace_of(place, "df_pope_random", "random", *reply), prompt.format(place + 1))
        for place, reply in enumerate(replies)
    ]
    docs = [
        {"question_id": str(place), "question": f"Is there a thing {place}?", "answer": label}
        for place, label in ((1, "yes"), (2, "yes"), (3, "no"))
    ]
    folder = write_traces(
        pope / "traces", traces, documents={"df_pope_random/random": docs} if known else None
    )
    found = outcomes(load_run(folder).tasks["df_pope_random"])
    assert found.table["macro"].tolist() == [100, 0, 0]
    assert found.table["micro"].tolist() == [0, 100, 100]
    scores = {metric.name: metric.value for metric in found.aggregates("macro")}
    assert (scores["precision"], scores["recall"], scores["f1"]) == (50, 50, 50)
    assert {metric.name: metric.value for metric in found.aggregates("oracle")}["f1"] == 100


def test_the_region_is_measured_where_one_is_annotated() -> None:
    """Located: the upper left quarter. A document may have no box, and a sample no located one."""
    quarter = (0.0, 0.0, 0.5, 0.5)
    annotated = [list(quarter), [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0], None, list(quarter)]
    found = overlaps([quarter] * 4 + [None], annotated)
    np.testing.assert_allclose(found, [1, 0.25, 0, np.nan, np.nan])


def test_a_box_that_leaves_the_image_or_is_empty() -> None:
    located = [(-1.0, 0.0, 0.5, 1.0), (0.2, 0.2, 0.2, 0.2)]
    annotated = [[0.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.2, 0.2]]
    np.testing.assert_allclose(overlaps(located, annotated), [1, 0])


@pytest.mark.parametrize(
    ("value", "expected"),
    [(50.0, 50), (1, 1), ({"score": 25.0, "cycle": 1}, 25), ({"right": True}, 100), ({"right": False}, 0)],
)
def test_number(value: object, expected: float) -> None:
    assert number(value) == expected


@pytest.mark.parametrize("value", ["yes", {"label": "yes", "prediction": "no"}, None, [1]])
def test_what_is_no_number(value: object) -> None:
    assert number(value) is None


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"question": 5, "rotation": 0, "right": True}, "5"),
        ({"question": "text 5", "score": 0.0}, "text 5"),
        ({"score": 0.0}, "10"),
        (100.0, "10"),
    ],
)
def test_a_question_in_several_orders_has_one_key(value: object, key: str) -> None:
    """As MMBench and HR-Bench say it; any other sample is a question of its own."""
    assert question_key(value, 10) == key
