"""The gate on other questions, missing samples and damaged baselines: none of them passes as a good run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from gate_runs import GOOD, WORSE, WriteRun

from dualfocus_lmms import UserError
from dualfocus_lmms.results.baseline import Baseline
from dualfocus_lmms.results.gate.check import Check, check, update
from dualfocus_lmms.results.runs import load_run


def test_the_order_and_the_processes_of_a_run_change_nothing(checked: Callable[..., Check]) -> None:
    result = checked(GOOD, order=lambda ids: list(ids)[::-1], ranks=lambda place: place % 3)
    assert result.all_failures == []
    assert result.tasks[0].flips == ()


def test_another_question_or_image_is_caught(
    checked: Callable[..., Check], tmp_path: Path, baseline: Baseline
) -> None:
    questions = [{"question": f"Question {doc_id}?"} for doc_id in range(1000)]
    questions[500] = {"question": "Another?"}
    result = checked(GOOD, questions=questions)
    (failure,) = result.all_failures
    assert baseline.tasks["df_local"].data["questions_fingerprint"] in failure
    file = tmp_path / "new" / "traces" / "data.json"
    data = json.loads(file.read_text())
    data["df_local/test"] |= baseline.tasks["df_local"].data | {"images": "0" * 16}
    file.write_text(json.dumps(data))
    assert len(check(load_run(tmp_path / "new"), baseline).all_failures) == 1


def test_without_fingerprints_nobody_knows_what_was_asked(
    checked: Callable[..., Check], tmp_path: Path, baseline: Baseline
) -> None:
    checked(GOOD)
    shutil.rmtree(tmp_path / "new" / "traces")
    assert len(check(load_run(tmp_path / "new"), baseline).all_failures) == 3


def test_a_run_whose_traces_are_elsewhere_becomes_no_baseline(tmp_path: Path, write_run: WriteRun) -> None:
    """It would lack the fingerprints, and every later check would pass on other data."""
    folder = write_run(tmp_path / "good", GOOD)
    (folder / "traces").rename(tmp_path / "moved")
    update(load_run(folder), tmp_path / "untraced.json")  # a run without trace=
    (file,) = folder.rglob("*_results.json")
    results = json.loads(file.read_text())
    results["config"]["model_args"] = "pretrained=nano,trace=good/traces"
    file.write_text(json.dumps(results))
    with pytest.raises(UserError, match="--traces"):
        update(load_run(folder), tmp_path / "baseline.json")
    update(load_run(folder, tmp_path / "moved"), tmp_path / "baseline.json")
    assert check(load_run(folder), Baseline.load(tmp_path / "untraced.json")).all_failures


def test_a_task_that_is_gone_and_one_that_is_new(checked: Callable[..., Check]) -> None:
    result = checked(GOOD, task="df_other")
    assert [failure.split(":")[0] for failure in result.all_failures] == ["df_local"]
    assert result.new == ("df_other",)


@pytest.mark.parametrize("lost", ["**/rank0.jsonl", "**/*_samples_*.jsonl", "**/*_results.json"])
def test_missing_samples(
    checked: Callable[..., Check], tmp_path: Path, baseline: Baseline, lost: str
) -> None:
    assert checked(GOOD).all_failures == []
    (file,) = (tmp_path / "new").glob(lost)
    if file.suffix == ".json":
        file.unlink()  # as a run that was killed
    else:
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    run = load_run(tmp_path / "new")
    assert check(run, baseline).all_failures
    with pytest.raises(UserError):
        update(run, tmp_path / "other.json")


def test_a_run_of_fewer_questions(checked: Callable[..., Check]) -> None:
    assert any("1000" in failure for failure in checked(GOOD[:900]).all_failures)


def test_a_baseline_survives_its_file(tmp_path: Path, write_run: WriteRun, baseline: Baseline) -> None:
    assert Baseline.of(load_run(tmp_path / "good")) == baseline
    task = baseline.tasks["df_local"]
    assert (task.samples, task.plain, task.scores) == (1000, True, GOOD)
    assert (baseline.versions, baseline.settings) == ({"torch": "2"}, {"pretrained": "nano"})
    assert baseline.date == "20261122_000000"
    file = tmp_path / "baseline.json"
    assert len(file.read_text().splitlines()) < 60  # the scores are one line
    assert file.stat().st_size < 6000
    update(load_run(write_run(tmp_path / "new", WORSE)), file)
    assert check(load_run(tmp_path / "new"), Baseline.load(file)).all_failures == []


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 9}', '{"version": 1}', '{"version": 1, "tasks": {"a": 1}}']
)
def test_a_damaged_baseline_is_a_mistake(tmp_path: Path, text: str) -> None:
    file = tmp_path / "b.json"
    file.write_text(text)
    with pytest.raises(UserError):
        Baseline.load(file)
