"""The gate's verdict on scores: planted drops are caught, what is within the limits passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gate_runs import GOOD, WORSE, WriteRun, changed, edit_results

from dualfocus_lmms import UserError
from dualfocus_lmms.results.baseline import Baseline
from dualfocus_lmms.results.gate.check import FLIPS_SHOWN, Check, check, compare
from dualfocus_lmms.results.gate.report import markdown
from dualfocus_lmms.results.runs import load_run


@pytest.mark.parametrize(("max_drop", "alpha"), [(None, 0.05), (1.0, 0.05), (100.0, 0.05), (1.0, 0.0)])
def test_a_drop_of_three_points_is_caught(
    checked: Callable[..., Check], max_drop: float | None, alpha: float
) -> None:
    """By its size, and also by either of the two limits alone."""
    result = checked(WORSE, max_drop, alpha)
    assert len(result.all_failures) == 1
    (task,) = result.tasks
    (accuracy,) = task.comparisons
    assert (accuracy.before, accuracy.now, accuracy.gain) == pytest.approx((60, 57, -3))
    assert accuracy.p == pytest.approx(2 / 2**30)  # 30 lost, none gained
    assert (task.lost, task.gained) == (30, 0)
    assert [flip.doc_id for flip in task.flips] == list(range(0, 100, 10))
    assert (task.flips[0].before, task.flips[0].now, task.flips[0].target) == (100, 0, "yes")


def test_a_drop_within_both_limits_passes(checked: Callable[..., Check]) -> None:
    scores = changed(changed(GOOD, 0.0, range(0, 200, 10)), 100.0, range(7, 157, 10))  # 20 lost, 15 gained
    result = checked(scores, max_drop=1.0)
    assert result.all_failures == []
    (task,) = result.tasks
    assert task.comparisons[0].gain == pytest.approx(-0.5)
    assert (task.lost, task.gained, len(task.flips)) == (20, 15, 2 * FLIPS_SHOWN)


def test_a_large_drop_by_chance_fails_by_the_bound_alone(
    checked: Callable[..., Check], tmp_path: Path, baseline: Baseline
) -> None:
    """20 answers fewer of 1,000, by 220 that changed: two points, and no proof of anything."""
    scores = changed(changed(GOOD, 0.0, range(0, 600, 5)), 100.0, range(7, 1000, 10))  # 120 lost, 100 gained
    (accuracy,) = checked(scores, max_drop=1.5).tasks[0].comparisons
    assert (accuracy.gain, accuracy.decided) == (pytest.approx(-2), "bound")
    assert accuracy.p == pytest.approx(0.2, abs=0.02)
    assert check(load_run(tmp_path / "new"), baseline).all_failures == []


def test_a_small_drop_of_one_kind_is_significant(checked: Callable[..., Check]) -> None:
    """9 answers lost of 1,000 and none gained: below the bound, and no accident."""
    assert len(checked(changed(GOOD, 0.0, range(0, 90, 10))).all_failures) == 1


@pytest.mark.parametrize(
    ("lost", "max_drop"),
    [
        (10, 1.0),
        (1, 0.1),  # 60 - 59.9 is 0.10000000000000142 in floating point
        (7, 0.7),  # 60 - 59.3 is 0.7000000000000028
    ],
)
def test_a_drop_of_exactly_the_bound_passes(
    checked: Callable[..., Check], lost: int, max_drop: float
) -> None:
    result = checked(changed(GOOD, 0.0, range(0, 10 * lost, 10)), max_drop, alpha=0.0)
    assert result.tasks[0].comparisons[0].gain == pytest.approx(-max_drop)
    assert result.all_failures == []


def test_one_answer_more_than_the_bound_fails(checked: Callable[..., Check]) -> None:
    assert len(checked(changed(GOOD, 0.0, range(0, 110, 10)), 1.0, alpha=0.0).all_failures) == 1


def test_better_answers_pass(checked: Callable[..., Check]) -> None:
    result = checked(changed(GOOD, 100.0, range(7, 307, 10)))
    assert result.all_failures == []
    assert result.tasks[0].comparisons[0].gain == pytest.approx(3)


def test_scores_between_right_and_wrong_are_paired_by_flips_of_signs(
    tmp_path: Path, write_run: WriteRun
) -> None:
    before = [100 / 3 * (place % 4) for place in range(400)]
    slightly_less = [max(score - 100 / 3, 0) if place < 40 else score for place, score in enumerate(before)]
    base = Baseline.of(load_run(write_run(tmp_path / "a", before)))
    result = check(load_run(write_run(tmp_path / "b", slightly_less)), base, max_drop=50)
    (accuracy,) = result.tasks[0].comparisons
    assert accuracy.test == "sign flips"
    assert accuracy.p is not None
    assert accuracy.p < 1e-3
    assert accuracy.failure is not None
    same = check(load_run(tmp_path / "a"), base)
    assert (same.all_failures, same.tasks[0].comparisons[0].p) == ([], 1.0)


def test_without_logged_samples_the_standard_errors_tell(
    tmp_path: Path, checked: Callable[..., Check], baseline: Baseline
) -> None:
    checked(WORSE)
    (samples,) = (tmp_path / "new").rglob("*_samples_*.jsonl")
    samples.unlink()
    (accuracy,) = check(load_run(tmp_path / "new"), baseline, max_drop=5).tasks[0].comparisons
    assert accuracy.test == "z"
    assert accuracy.p == pytest.approx(0.173, abs=0.002)  # 3 points, error 2.2: not significant
    assert accuracy.failure is None


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize(
    ("before", "now", "fails"),
    [
        ([100.0] * 20, [0.0] * 20, True),
        ([0.0] * 20, [100.0] * 20, False),
        ([0.0] * 20, [0.0] * 20, False),
        ([60.0], [30.0], False),  # one answer, two or three are no proof, however much they lose
        ([100.0], [0.0], False),
        ([60.0, 90.0], [30.0, 60.0], False),
        ([100.0, 100.0], [0.0, 0.0], False),
        ([60.0, 60.0, 60.0], [60.0, 60.0, 30.0], False),
        ([100.0] * 50, [100.0] * 49 + [0.0], False),
    ],
)
def test_runs_of_few_answers_or_without_variance(
    tmp_path: Path, write_run: WriteRun, before: list[float], now: list[float], fails: bool, logged: bool
) -> None:
    """Their standard errors are 0, or they have none."""
    folders = [write_run(tmp_path / name, scores) for name, scores in (("base", before), ("new", now))]
    if len(before) == 1:  # the host has no error of a single answer
        for folder in folders:
            edit_results(folder, lambda results: results["results"]["df_local"].update(NO_ERROR))
    if not logged:
        (samples,) = folders[1].rglob("*_samples_*.jsonl")
        samples.unlink()
    base = Baseline.of(load_run(folders[0]))
    (accuracy,) = check(load_run(folders[1]), base).tasks[0].comparisons
    assert (accuracy.failure is not None) is fails
    assert accuracy.p is None or 0 < accuracy.p <= 1


NO_ERROR = {"accuracy_stderr,none": "N/A"}


def test_a_check_of_many_tasks_corrects_for_their_number(tmp_path: Path, write_run: WriteRun) -> None:
    """6 answers lost and none gained: p = 0.03 in one task, and nothing to speak of among ten."""
    slightly = changed(GOOD, 0.0, range(0, 60, 10))
    before = Baseline.of(load_run(write_run(tmp_path / "a", GOOD))).tasks["df_local"]
    now = Baseline.of(load_run(write_run(tmp_path / "b", slightly))).tasks["df_local"]
    (one,) = compare({"t0": before}, {"t0": now})
    assert one.comparisons[0].decided == "p"
    names = [f"t{number}" for number in range(10)]
    ten = compare(dict.fromkeys(names, before), dict.fromkeys(names, before) | {"t3": now})
    assert [task.comparisons[0].failure for task in ten] == [None] * 10
    item = ten[3].comparisons[0]
    assert (item.p, item.corrected) == pytest.approx((2 / 2**6, 10 * 2 / 2**6))


def test_other_metrics_and_groups(tmp_path: Path, write_run: WriteRun) -> None:
    """Less of what should be low is no drop, what has no direction is not judged, a group has no samples."""

    def add(bias: float, ratio: float, group: float) -> Callable[[dict], None]:
        def edit(results: dict) -> None:
            scores = {"bias,none": bias, "bias_stderr,none": "N/A", "ratio,none": ratio}
            results["results"]["df_local"] |= scores
            results["higher_is_better"]["df_local"] |= {"bias": False, "ratio": None, "bias_stderr": False}
            results["results"]["df_all"] = {"accuracy,none": group, "accuracy_stderr,none": 1.0}
            results["higher_is_better"]["df_all"] = {"accuracy": True}

        return edit

    folder = write_run(tmp_path / "run", [100.0, 0.0])
    edit_results(folder, add(bias=5, ratio=50, group=80))
    base = Baseline.of(load_run(folder))
    edit_results(folder, add(bias=3, ratio=10, group=79.5))
    assert check(load_run(folder), base).all_failures == []
    edit_results(folder, add(bias=8, ratio=50, group=70))
    text = markdown(check(load_run(folder), base))  # without a bound nothing judges what has no error
    assert "df_local bias" in text.split("Not judged")[1]
    result = check(load_run(folder), base, max_drop=1.0)
    failed = {(task.task, item.metric) for task in result.tasks for item in task.comparisons if item.failure}
    assert failed == {("df_local", "bias"), ("df_all", "accuracy")}
    edit_results(folder, lambda results: results["results"]["df_local"].pop("bias,none"))
    assert any("bias" in failure for failure in check(load_run(folder), base).all_failures)


@pytest.mark.parametrize(
    ("max_drop", "alpha"), [(-1, 0.05), (float("nan"), 0.05), (1, 1), (1, -0.1), (None, 0)]
)
def test_impossible_limits(checked: Callable[..., Check], max_drop: float | None, alpha: float) -> None:
    with pytest.raises(UserError):
        checked(GOOD, max_drop, alpha)
