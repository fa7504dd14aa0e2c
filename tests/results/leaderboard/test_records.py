"""Published numbers are the printed ones, and a run is recorded once, as it was."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from dualfocus_lmms import UserError
from dualfocus_lmms.results import outcomes
from dualfocus_lmms.results.leaderboard import records
from dualfocus_lmms.results.leaderboard.records import (
    FOLDER,
    Located,
    Measured,
    Published,
    Score,
    add,
    method,
    read_measured,
    read_published,
    record,
)
from dualfocus_lmms.results.leaderboard.table import leaderboard
from dualfocus_lmms.results.runs import load_run
from dualfocus_lmms.tasks.common.score import Metric

WriteRun = Callable[..., Path]
RIGHT_AND_WRONG = [100.0, 0.0, 100.0, 100.0]
PAPER = {"title": "Zoom", "short": "Zoom", "year": 2024, "url": "https://example.org/zoom"}
COLUMN = {"printed": "POPE", "task": "df_pope", "metric": "f1"}


def table(values: list[float | None], **column: object) -> dict[str, Any]:
    rows = [{"row": "ours", "model": "M", "method": "zoom", "values": values}]
    return {"table": "table 1", "columns": [{**COLUMN, **column}], "rows": rows}


def printed(short: str, name: str) -> dict[str, list[float | None]]:
    """The rows of a table of a paper."""
    (found,) = (
        table
        for published in read_published()
        if published.paper.short == short
        for table in published.tables
        if table.table == name
    )
    return {row.row: row.values for row in found.rows}


# --- published ---------------------------------------------------------------------------------------------


def test_table_1():
    assert printed("DualFocus", "table 1") == {
        "LLaVA-1.5, Vicuna-7B": [66.2, 64.3, 67.2, 58.2],
        "LLaVA-1.5+DF, Vicuna-7B": [68.9, 66.6, 69.3, 62.0],
        "LLaVA-1.5, Vicuna-13B": [68.2, 67.7, 69.3, 61.3],
        "LLaVA-1.5+DF, Vicuna-13B": [71.0, 70.7, 74.5, 65.5],
        "Qwen-VL-Chat, Qwen-7B": [65.4, 60.6, 69.0, 61.5],
        "Qwen-VL-Chat + DF, Qwen-7B": [66.6, 63.2, 73.0, 63.7],
    }


@pytest.mark.parametrize(
    ("base", "ours", "gains"),
    [
        ("LLaVA-1.5, Vicuna-7B", "LLaVA-1.5+DF, Vicuna-7B", [2.7, 2.3, 2.1, 3.8]),
        ("LLaVA-1.5, Vicuna-13B", "LLaVA-1.5+DF, Vicuna-13B", [2.8, 3.0, 5.2, 4.2]),
        ("Qwen-VL-Chat, Qwen-7B", "Qwen-VL-Chat + DF, Qwen-7B", [1.2, 2.6, 4.0, 2.2]),
    ],
)
def test_the_gains_that_table_1_prints_beside_its_numbers(base: str, ours: str, gains: list[float]):
    rows = printed("DualFocus", "table 1")
    pairs = zip(rows[ours], rows[base], strict=True)
    assert [round(now - then, 1) for now, then in pairs] == gains  # type: ignore[operator]


def test_tables_2_3_5_and_7():
    assert printed("DualFocus", "table 2")["Share4V-DF (ours), Vicuna-13B"] == [72.9, 70.7, 75.7, 66.2]
    assert printed("DualFocus", "table 2")["InstructBLIP, Vicuna-7B"] == [53.4, 36.0, None, 50.1]
    assert printed("DualFocus", "table 3")["Ours, micro"] == [67.7, 61.3]
    assert printed("DualFocus", "table 3")["Base, micro"] == [None, None]
    assert printed("DualFocus", "table 5")["Permute 150 pixel"] == [67.1, 65.2, 67.7, 59.0]
    assert printed("DualFocus", "table 7") == {"LLaVA-1.5": [117, 17.0], "LLaVA-1.5-DF": [245, 18.6]}


def whole_and_parts(metrics: tuple[str, str, str]) -> list[tuple[float, float, float]]:
    """(whole, part, part) of every published row that has all three for one task."""
    found = []
    for published in read_published():
        for table in published.tables:
            for row in table.rows:
                cells: dict[str, dict[str, float]] = {}
                for column, value in zip(table.columns, row.values, strict=True):
                    if value is not None and column.unit == "percent":
                        cells.setdefault(column.task, {})[column.metric] = value
                found += [
                    tuple(scores[metric] for metric in metrics)
                    for scores in cells.values()
                    if set(metrics) <= set(scores)
                ]
    return found  # type: ignore[return-value]


def test_overall_scores_of_vstar_are_those_of_its_115_and_76_questions():
    rows = whole_and_parts(("accuracy", "direct_attributes", "relative_position"))
    assert len(rows) > 20
    assert [row for row in rows if abs((115 * row[1] + 76 * row[2]) / 191 - row[0]) > 0.1] == []


def test_overall_scores_of_hrbench_are_the_mean_of_its_halves():
    rows = whole_and_parts(("accuracy", "single", "cross"))
    assert len(rows) > 20
    assert [row for row in rows if abs((row[1] + row[2]) / 2 - row[0]) > 0.11] == []


def test_f1_follows_from_precision_and_recall():
    rows = whole_and_parts(("f1", "precision", "recall"))
    assert len(rows) == 6
    assert [row for row in rows if abs(2 * row[1] * row[2] / (row[1] + row[2]) - row[0]) > 0.01] == []


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([101.0], {}),
        ([-0.1], {}),
        ([2001.0], {"unit": "score"}),
        ([-101.0], {"unit": "points"}),
        ([50.0, 50.0], {}),
        ([float("nan")], {}),
        ([50.0], {"metric": ""}),
        ([50.0], {"stderr": 1.0}),
    ],
)
def test_a_number_out_of_range_or_without_a_column_is_refused(values: list[float], column: dict[str, Any]):
    with pytest.raises(ValidationError):
        Published.model_validate({"paper": PAPER, "tables": [table(values, **column)]})


@pytest.mark.parametrize(
    ("values", "column"),
    [([None], {}), ([1510.7], {"unit": "score"}), ([-1.8], {"unit": "points"}), ([443.0], {"unit": "ms"})],
)
def test_what_a_table_may_hold(values: list[float | None], column: dict[str, Any]):
    read = Published.model_validate({"paper": PAPER, "tables": [table(values, **column)]})
    assert read.tables[0].rows[0].values == values


@pytest.mark.parametrize("paper", [{**PAPER, "url": ""}, {**PAPER, "title": ""}, {**PAPER, "year": 0}])
def test_a_paper_without_a_source_is_refused(paper: Mapping[str, Any]):
    with pytest.raises(ValidationError):
        Published.model_validate({"paper": paper, "tables": [table([50.0])]})


def test_a_file_of_another_form_is_named(tmp_path: Path):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "mine.json").write_text('{"paper": {}}', encoding="utf-8")
    with pytest.raises(UserError, match=r"mine\.json"):
        read_published(tmp_path)


# --- measured ----------------------------------------------------------------------------------------------


def test_every_measured_file_is_read_under_its_own_name():
    for file, measured in read_measured().items():
        assert file == f"runs/{measured.name}.json"
    assert len(read_published()) == len(list((FOLDER / "published").iterdir()))


@pytest.fixture
def measured(tmp_path: Path, write_run: WriteRun) -> Measured:
    return record(load_run(write_run(tmp_path / "run", RIGHT_AND_WRONG)), "a test machine")


def test_a_run_is_recorded_as_it_was(measured: Measured):
    assert (measured.model, measured.hardware) == ("nano", "a test machine")
    assert measured.settings["pretrained"] == "nano"  # not the path on this machine
    assert measured.versions == {"torch": "2"}
    task = measured.tasks["df_local"]
    assert (task.n, task.questions) == (4, 4)
    assert task.scores == {"selected": {"accuracy": Score(value=75.0, error=25.0)}}
    assert set(task.fingerprints) == {"prompts", "images", "questions_fingerprint"}


def test_the_commit_is_that_of_the_checkout(
    tmp_path: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    run = load_run(write_run(tmp_path / "run", RIGHT_AND_WRONG))
    monkeypatch.setattr(records, "FOLDER", checkout / "dualfocus_lmms" / "results" / "data")
    assert record(run, "a machine").commit is None

    def git(*arguments: str) -> str:
        command = [
            "git",
            "-C",
            str(checkout),
            "-c",
            "user.name=A",
            "-c",
            "user.email=a@b.example",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "--message", "first")
    assert record(run, "a machine").commit == git("rev-parse", "--short", "HEAD")


def test_a_record_is_read_back_and_never_written_anew(measured: Measured, tmp_path: Path):
    path = add(measured, tmp_path)
    assert path.name == "2026-11-22-000000-nano-df_local.json"
    assert read_measured(tmp_path) == {f"runs/{path.name}": measured}
    before = path.read_bytes()
    with pytest.raises(UserError):
        add(measured.model_copy(update={"hardware": "another"}), tmp_path)
    assert path.read_bytes() == before


def test_a_part_of_the_questions_and_missing_images_show(tmp_path: Path, write_run: WriteRun):
    folder = write_run(tmp_path / "run", RIGHT_AND_WRONG)
    (file,) = folder.rglob("*_results.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    results["n-samples"]["df_local"]["original"] = 90
    results["results"]["df_local"]["questions_without_image,none"] = 10
    results["higher_is_better"]["df_local"]["questions_without_image"] = False
    file.write_text(json.dumps(results), encoding="utf-8")
    task = record(load_run(folder), "a test machine").tasks["df_local"]
    assert (task.n, task.questions) == (4, 100)


def test_a_group_has_the_questions_of_its_tasks(tmp_path: Path, write_run: WriteRun):
    folder = write_run(tmp_path / "run", RIGHT_AND_WRONG)
    (file,) = folder.rglob("*_results.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    results["n-samples"]["df_other"] = {"original": 10, "effective": 6}
    results["results"]["df_both"] = {"accuracy,none": 60.0, "accuracy_stderr,none": 9.0}
    results["higher_is_better"]["df_both"] = {"accuracy": True}
    results["group_subtasks"] = {"df_both": ["df_local", "df_other"]}
    file.write_text(json.dumps(results), encoding="utf-8")
    measured = record(load_run(folder), "a test machine")
    assert (measured.tasks["df_both"].n, measured.tasks["df_both"].questions) == (10, 14)
    assert measured.name == "2026-11-22-000000-nano-df_both"  # the group's tasks are in it


def test_macro_and_micro_answers_by_themselves(
    tmp_path: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
):
    worth = {"macro": 60.0, "micro": 70.0}

    def scored(task: object) -> SimpleNamespace:
        return SimpleNamespace(
            aggregates=lambda way: (Metric("accuracy", worth[way], 5.0, 4),),
            table=pd.DataFrame(
                {
                    "annotated": [True, True, False],
                    "fallback": [None, "no_box", None],
                    "iou": [0.5, float("nan"), float("nan")],
                    "coverage": [0.8, float("nan"), float("nan")],
                }
            ),
        )

    monkeypatch.setattr(outcomes, "outcomes", scored)
    run = load_run(write_run(tmp_path / "run", RIGHT_AND_WRONG))
    measured = record(run, "a test machine", pathways=True)
    task = measured.tasks["df_local"]
    assert {way: of["accuracy"].value for way, of in task.scores.items()} == {"selected": 75.0, **worth}
    assert task.located == Located(n=2, iou=0.25, coverage=40.0)
    add(measured, tmp_path / "own")
    rows = leaderboard(tmp_path / "own").set_index("method")
    assert rows["coverage"].dropna().tolist() == [40.0]  # of the run's own answers
    assert rows["IoU"].dropna().tolist() == [0.25]
    assert record(run, "a test machine").tasks["df_local"].located is None


def test_what_cannot_be_recorded(tmp_path: Path, write_run: WriteRun):
    run = load_run(write_run(tmp_path / "run", RIGHT_AND_WRONG))
    with pytest.raises(UserError):
        record(run, " ")
    with pytest.raises(UserError):
        record(load_run(tmp_path / "run" / "traces"), "a test machine")  # it did not end
    beyond = write_run(tmp_path / "beyond", [120.0, 120.0])
    with pytest.raises(UserError):
        record(load_run(beyond), "a test machine")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "plain"),
        ({"pathway": "macro", "protocol": "paper"}, "macro only"),
        ({"pathway": "both", "protocol": "paper", "select": "ppl", "box_shift": 0}, "DualFocus paper, ppl"),
        (
            {"protocol": "release", "select": "ppl_tie_macro", "grounding": "center", "box_shift": 25},
            "DualFocus release, ppl_tie_macro, grounding center, box_shift 25",
        ),
    ],
)
def test_the_name_of_a_method(settings: Mapping[str, Any], said: str):
    assert method(settings) == said
