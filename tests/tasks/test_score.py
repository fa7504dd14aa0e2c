"""Answers from files through a task's own code: the published figures of LLaVA, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dualfocus_lmms import UserError, cli
from dualfocus_lmms.tasks.common import scoring
from dualfocus_lmms.tasks.common.score import Scores, read_answers, score
from dualfocus_lmms.tasks.common.score_group import score_group
from dualfocus_lmms.tasks.common.uncertainty import bootstrap_error

Write = Callable[[Path, list[dict[str, Any]]], Path]
SPLITS = ("random", "popular", "adversarial")

pytestmark = pytest.mark.usefixtures("host_tasks")


@pytest.fixture
def pope(pope_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUALFOCUS_DATA", str(pope_folder))
    return pope_folder


def values(scores: Scores) -> dict[str, float]:
    return {metric.name: metric.value for metric in scores.metrics}


def test_questions_without_image_count_too(pope: Path, write_lines: Write) -> None:
    rows = [
        {"question_id": 2, "text": "No."},
        {"question_id": "1", "text": "no"},
        {"question_id": 3, "text": "No"},
    ]
    found = score("df_pope_random", write_lines(pope / "answers.jsonl", rows))
    assert (found.questions, found.missing) == (3, ())
    assert values(found) == {
        "accuracy": pytest.approx(200 / 3),
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "yes_ratio": 0.0,
        "questions_without_image": 0,
    }
    errors = {metric.name: metric.error for metric in found.metrics}
    assert errors["accuracy"] == pytest.approx(100 / 3)  # deviations 1/3, 1/3, 2/3: variance 1/3, over 3
    assert (errors["recall"], errors["questions_without_image"]) == (0.0, None)


def test_missing_answers_are_wrong_and_listed(pope: Path, write_lines: Write) -> None:
    found = score("df_pope_random", write_lines(pope / "answers.jsonl", [{"question_id": 1, "text": "Yes"}]))
    assert found.missing == ("2", "3")
    assert (values(found)["accuracy"], values(found)["precision"]) == (
        pytest.approx(100 / 3),
        pytest.approx(100 / 3),
    )
    assert values(found)["recall"] == 100.0


def test_the_same_answers_have_the_same_fingerprints(pope: Path, write_lines: Write) -> None:
    rows = [{"question_id": number, "text": "yes"} for number in (1, 2, 3)]
    first = score("df_pope_random", write_lines(pope / "one.jsonl", rows))
    other = score("df_pope_random", write_lines(pope / "other.jsonl", [*rows[:2], {**rows[2], "text": "no"}]))
    assert first.questions_fingerprint == other.questions_fingerprint
    assert first.answers_fingerprint != other.answers_fingerprint


def test_markdown_and_json_hold_the_scores(pope: Path, write_lines: Write) -> None:
    found = score("df_pope_random", write_lines(pope / "answers.jsonl", [{"question_id": 1, "text": "Yes"}]))
    table = found.markdown()
    (row,) = [line.split("|")[1:-1] for line in table.splitlines() if "| accuracy" in line]
    assert [cell.strip() for cell in row] == ["df_pope_random", "accuracy", "33.33", "33.33", "3"]
    assert found.questions_fingerprint in table
    assert found.answers_fingerprint in table
    found.save(pope / "scores.json")
    saved = json.loads((pope / "scores.json").read_text("utf-8"))
    assert saved["missing"] == ["2", "3"]
    assert saved["metrics"][0] == {
        "name": "accuracy", "value": pytest.approx(100 / 3), "error": pytest.approx(100 / 3), "samples": 3,
    }  # fmt: skip
    assert set(saved["versions"]) == {"dualfocus_lmms", "lmms_eval"}
    with pytest.raises(UserError, match="scores"):
        found.save(pope / "scores.json" / "more.json")


def test_questions_without_an_id_use_their_index(
    tmp_path: Path, write_lines: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"image": "gone.png", "question": "What colour?", "answer": colour} for colour in ("red", "blue")]
    monkeypatch.setenv("DUALFOCUS_LOCAL", str(write_lines(tmp_path / "mine.jsonl", rows)))
    answers = write_lines(tmp_path / "answers.jsonl", [{"question_id": 1, "text": "Blue."}])
    found = score("df_local", answers)
    assert (values(found), found.missing) == ({"accuracy": 50.0}, ("0",))


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"question_id": 1, "text": "yes"}, {"question_id": 7, "text": "no"}], "7"),
        ([{"question_id": 1, "text": "yes"}, {"question_id": "1", "text": "yes"}], "twice: 1"),
        ([{"question_id": 1.5, "text": "yes"}], "1.5"),
        ([{"question_id": True, "text": "yes"}], "True"),
        ([{"text": "yes"}], "None"),
        ([{"question_id": 1}], "text"),
        ([{"question_id": 1, "text": 3}], "3"),
        ([], "no answer"),
    ],
)
def test_invalid_answers_raise(
    pope: Path, write_lines: Write, rows: list[dict[str, Any]], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        score("df_pope_random", write_lines(pope / "answers.jsonl", rows))


@pytest.mark.parametrize(("task", "named"), [("df_pope", "df_pope_random"), ("df_pop", "df_pope")])
def test_a_group_instead_of_a_task_and_an_unknown_task_raise(
    pope: Path, write_lines: Write, task: str, named: str
) -> None:
    answers = write_lines(pope / "answers.jsonl", [{"question_id": 1, "text": "yes"}])
    with pytest.raises(UserError, match=named):
        score(task, answers)


def test_a_task_without_its_data_raises(
    tmp_path: Path, write_lines: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        score("df_pope_random", write_lines(tmp_path / "answers.jsonl", [{"question_id": 1, "text": "yes"}]))


def test_a_users_own_task(pope: Path, write_lines: Write) -> None:
    rows = [{"key": "a", "answers": ["red"]}, {"key": "b", "answers": ["blue"]}]
    (pope / "tasks").mkdir()
    data = write_lines(pope / "mine.jsonl", [{"id": row["key"], "answers": row["answers"]} for row in rows])
    (pope / "tasks" / "df_mine.yaml").write_text(
        f"""
task: df_mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "What colour?"
doc_to_target: answers
process_results: !function dualfocus_lmms.tasks.common.scoring.answer_results
metric_list:
  - {{metric: accuracy, aggregation: mean, higher_is_better: true}}
metadata: {{version: 2.5}}
"""
    )
    answers = write_lines(pope / "answers.jsonl", [{"question_id": "b", "text": "blue"}])
    found = score("df_mine", answers, str(pope / "tasks"))
    assert (values(found), found.missing, found.version) == ({"accuracy": 50.0}, ("a",), "2.5")


# --- groups ------------------------------------------------------------------------------------------------


@pytest.fixture
def three_splits(pope: Path, write_lines: Write) -> Path:
    """Two questions in each split of POPE, under the same ids; of each split one answer is yes."""
    for split in SPLITS:
        rows = [
            {"question_id": number, "image": "gone.jpg", "text": "Is there a dog?", "label": label}
            for number, label in ((1, "yes"), (2, "no"))
        ]
        write_lines(pope / "pope" / f"coco_pope_{split}.json", rows)
    return pope


def test_a_group_with_one_file_of_answers(three_splits: Path, write_lines: Write) -> None:
    """As LLaVA publishes POPE's: the ids of random and popular are raised. One answer is missing."""
    texts = {1: "Yes", 2: "Yes", 10_000_001: "Yes", 10_000_002: "No", 20_000_001: "No"}
    rows = [{"question_id": key, "text": text} for key, text in texts.items()]
    found = score_group("df_pope", write_lines(three_splits / "llava.jsonl", rows))
    accuracy = {scores.task.split("_")[-1]: values(scores)["accuracy"] for scores in found.tasks}
    assert accuracy == {"adversarial": 50, "random": 100, "popular": 0}
    assert {scores.task: scores.missing for scores in found.tasks if scores.missing} == {
        "df_pope_popular": ("2",)
    }
    means = {metric.name: metric.value for metric in found.metrics}
    assert means["accuracy"] == pytest.approx(50)
    assert means["f1"] == pytest.approx((200 / 3 + 100 + 0) / 3)
    assert {(metric.error, metric.samples) for metric in found.metrics} == {(None, 6)}
    table = found.markdown()
    (row,) = [line.split("|")[1:-1] for line in table.splitlines() if "| df_pope  " in line and "f1" in line]
    assert [cell.strip() for cell in row] == ["df_pope", "f1", "55.56", "-", "6"]
    assert table.count("fingerprint") == 6
    found.save(three_splits / "scores.json")
    saved = json.loads((three_splits / "scores.json").read_text("utf-8"))
    assert [scores["task"] for scores in saved["tasks"]] == [scores.task for scores in found.tasks]


@pytest.mark.parametrize("key", [3, 10_000_003, 30_000_001])
def test_an_id_of_no_task_of_the_group_raises(three_splits: Path, write_lines: Write, key: int) -> None:
    answers = write_lines(three_splits / "answers.jsonl", [{"question_id": key, "text": "yes"}])
    with pytest.raises(UserError, match=f"{key}.*df_pope_random: 10000001, 10000002"):
        score_group("df_pope", answers)


def test_a_group_whose_tasks_share_ids_raises(three_splits: Path, write_lines: Write, tmp_path: Path) -> None:
    folder = tmp_path / "groups"
    folder.mkdir()
    members = "task: [df_pope_random, df_pope_popular]"
    (folder / "df_two.yaml").write_text(f"group: df_two\n{members}\nmetadata: {{version: 1.0}}\n")
    answers = write_lines(three_splits / "answers.jsonl", [{"question_id": 1, "text": "yes"}])
    with pytest.raises(UserError, match="score one by one df_pope_random, df_pope_popular"):
        score_group("df_two", answers, str(folder))


def test_the_command_takes_a_group(
    three_splits: Path, write_lines: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    answers = write_lines(three_splits / "answers.jsonl", [{"question_id": 1, "text": "yes"}])
    monkeypatch.setattr(sys, "argv", ["dualfocus", "score", "--task", "df_pope", "--answers", str(answers)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert "df_pope_adversarial" in capsys.readouterr().out


# --- correct answers in the file ---------------------------------------------------------------------------

SUBMISSION = {
    "index": [7, 1_000_007, 8, 9],
    "question": ["q"] * 4,
    "A": ["red", "blue", "one", 1],
    "B": ["blue", "red", "two", 2],
    "C": ["", "", "three", ""],
    "D": ["", "", "", ""],
    "prediction": ["A", "B", "C", "The answer is B."],
    "answer": ["A", "B", "A", "B"],
}


def write_sheet(path: Path, columns: dict[str, Any]) -> Path:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(columns).to_excel(path, index=False)
    return path


def test_a_submission_with_the_correct_answers_needs_no_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    found = score("df_mmbench_en_dev", write_sheet(tmp_path / "answers.xlsx", SUBMISSION))
    assert (found.questions, found.missing, found.own_questions) == (4, (), True)
    assert values(found) == {
        "circular_accuracy": pytest.approx(200 / 3),
        "vanilla_accuracy": pytest.approx(200 / 3),
        "incomplete_questions": 2,  # of 8 and 9 the other orders are not in the file
    }
    assert "from the answers file" in found.markdown()
    abilities = {"l2-category": ["coarse_perception"] * 2 + ["logic_reasoning"] * 2}
    found = score("df_mmbench_en_dev", write_sheet(tmp_path / "more.xlsx", SUBMISSION | abilities))
    assert values(found)["circular_coarse_perception"] == 100
    assert values(found)["vanilla_logic_reasoning"] == 50


def test_questions_of_the_data_folder_come_before_those_of_the_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere"):
        score("df_mmbench_en_dev", write_sheet(tmp_path / "answers.xlsx", SUBMISSION))


def test_a_submission_with_an_invalid_correct_answer_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DUALFOCUS_DATA", raising=False)
    wrong = SUBMISSION | {"answer": ["A", "B", "D", "B"]}
    with pytest.raises(UserError, match=r"index '8'.*'D'"):
        score("df_mmbench_en_dev", write_sheet(tmp_path / "answers.xlsx", wrong))


# --- files -------------------------------------------------------------------------------------------------


def test_a_sheet_of_answers(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = {"index": [241, 1_000_241], "prediction": ["A", "NA"], "question": ["q", "q"]}
    pandas.DataFrame(table).to_excel(tmp_path / "answers.xlsx", index=False)
    assert read_answers(tmp_path / "answers.xlsx") == {"241": "A", "1000241": "NA"}
    pandas.DataFrame({"index": [1], "prediction": [None]}).to_excel(tmp_path / "empty.xlsx", index=False)
    assert read_answers(tmp_path / "empty.xlsx") == {"1": ""}
    pandas.DataFrame({"index": [1], "answer": ["A"]}).to_excel(tmp_path / "other.xlsx", index=False)
    with pytest.raises(UserError, match="prediction"):
        read_answers(tmp_path / "other.xlsx")


@pytest.mark.parametrize("content", [b"no sheet", b"PK\x03\x04 cut off", b""])
def test_a_file_that_is_not_a_sheet_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "answers.xlsx").write_bytes(content)
    with pytest.raises(UserError, match=r"answers\.xlsx"):
        read_answers(tmp_path / "answers.xlsx")


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        read_answers(tmp_path / "gone.jsonl")


# --- published figures -------------------------------------------------------------------------------------


def split_answers(shared: Path, split: str) -> list[dict[str, Any]]:
    """LLaVA-1.5-13B's released answers of one split, under POPE's own ids: LLaVA adds 10,000,000 a split."""
    folder = shared / "data" / "llava_eval" / "pope"
    lines = map(json.loads, (folder / "llava_pope_test.jsonl").read_text("utf-8").splitlines())
    category = {row["question_id"]: row["category"] for row in lines}
    rows = map(json.loads, (folder / "answers_llava-v1.5-13b.jsonl").read_text("utf-8").splitlines())
    return [
        {**row, "question_id": row["question_id"] % 10_000_000}
        for row in rows
        if category[row["question_id"]] == split
    ]


@pytest.fixture
def first_release(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DUALFOCUS_DATA folder with POPE's first release and no image."""
    (tmp_path / "pope").symlink_to(shared_data / "data" / "pope" / "e3e3926")
    monkeypatch.setenv("DUALFOCUS_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("split", "questions", "f1", "accuracy"),
    [("random", 2910, 87.14, 88.01), ("popular", 3000, 86.25, 87.43), ("adversarial", 3000, 84.46, 85.50)],
)
def test_llava_answers_give_the_published_f1(
    shared_data: Path,
    first_release: Path,
    write_lines: Write,
    split: str,
    questions: int,
    f1: float,
    accuracy: float,
) -> None:
    answers = write_lines(first_release / f"{split}.jsonl", split_answers(shared_data, split))
    found = score(f"df_pope_{split}", answers)
    assert (found.questions, found.missing) == (questions, ())
    assert values(found)["f1"] == pytest.approx(f1, abs=0.005)
    assert values(found)["accuracy"] == pytest.approx(accuracy, abs=0.005)
    errors = {metric.name: metric.error for metric in found.metrics}
    share = accuracy / 100
    assert errors["accuracy"] == pytest.approx(100 * (share * (1 - share) / questions) ** 0.5, rel=0.001)
    assert errors["f1"] == pytest.approx(0.70, abs=0.05)


def test_llavas_own_file_gives_the_published_f1_of_the_group(shared_data: Path, first_release: Path) -> None:
    answers = shared_data / "data" / "llava_eval" / "pope" / "answers_llava-v1.5-13b.jsonl"
    found = score_group("df_pope", answers)
    assert {one.missing for one in found.tasks} == {()}
    f1 = {one.task: values(one)["f1"] for one in found.tasks}
    published = {"df_pope_random": 87.14, "df_pope_popular": 86.25, "df_pope_adversarial": 84.46}
    assert f1 == pytest.approx(published, abs=0.005)
    assert {one.name: one.value for one in found.metrics}["f1"] == pytest.approx(85.95, abs=0.005)


def test_the_splits_share_their_yes_questions_so_that_their_errors_are_not_independent(
    shared_data: Path,
) -> None:
    """As in docs/tasks.md, the group's row: the mean of their recalls is no more certain than one of them."""
    by_image: dict[str, np.ndarray] = {}
    single = []
    for index, split in enumerate(SPLITS):
        text = (shared_data / "data" / "pope" / "e3e3926" / f"coco_pope_{split}.json").read_text("utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        pairs = [
            scoring.Pair(label=row["label"], prediction=scoring.read_yes_no(answer["text"]))
            for row, answer in zip(rows, split_answers(shared_data, split), strict=True)
        ]
        single.append((scoring.recall_error(pairs), scoring.f1_error(pairs)))
        for row, count in zip(rows, scoring.counts(pairs), strict=True):
            by_image.setdefault(row["image"], np.zeros((3, 3)))[index] += count

    def mean(part: Callable[[np.ndarray], np.ndarray]) -> float:
        flat = [counts.reshape(-1) for counts in by_image.values()]
        return bootstrap_error(flat, lambda means: part(means.reshape(-1, 3, 3)).mean(axis=1))

    joint = (
        mean(lambda counts: 100 * counts[..., 0] / counts[..., 2]),
        mean(lambda counts: 200 * counts[..., 0] / (counts[..., 1] + counts[..., 2])),
    )
    independent = [np.linalg.norm(errors) / 3 for errors in zip(*single, strict=True)]
    assert joint == pytest.approx((1.04, 0.66), abs=0.02)
    assert independent == pytest.approx((0.59, 0.40), abs=0.02)
