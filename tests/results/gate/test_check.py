"""The gate: planted changes are caught, and a run that only lies on disk in another way passes."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from markdown_it import MarkdownIt
from typer.main import get_command

from dualfocus_lmms import UserError, cli
from dualfocus_lmms.results.baseline import Baseline
from dualfocus_lmms.results.gate.check import FLIPS_SHOWN, Check, check, compare, update
from dualfocus_lmms.results.gate.report import junit, markdown
from dualfocus_lmms.results.runs import load_run

WriteRun = Callable[..., Path]
GOOD = [100.0 if place % 10 < 6 else 0.0 for place in range(1000)]  # 60 % right


def changed(scores: Sequence[float], to: float, places: Sequence[int]) -> list[float]:
    return [to if place in set(places) else score for place, score in enumerate(scores)]


WORSE = changed(GOOD, 0.0, range(0, 300, 10))  # 30 of 1,000 right ones are wrong now


@pytest.fixture
def baseline(tmp_path: Path, write_run: WriteRun) -> Baseline:
    update(load_run(write_run(tmp_path / "good", GOOD)), tmp_path / "baseline.json")
    return Baseline.load(tmp_path / "baseline.json")


@pytest.fixture
def checked(tmp_path: Path, write_run: WriteRun, baseline: Baseline) -> Callable[..., Check]:
    """A run with the given scores, checked; numbers after the scores are the bound and alpha."""

    def make(
        scores: Sequence[float], max_drop: float | None = None, alpha: float = 0.05, **how_written: object
    ) -> Check:
        return check(load_run(write_run(tmp_path / "new", scores, **how_written)), baseline, max_drop, alpha)

    return make


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


def test_the_order_and_the_processes_of_a_run_change_nothing(checked: Callable[..., Check]) -> None:
    result = checked(GOOD, order=lambda ids: list(ids)[::-1], ranks=lambda place: place % 3)
    assert result.all_failures == []
    assert result.tasks[0].flips == ()


def test_another_question_or_picture_is_caught(
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


def edit_results(folder: Path, edit: Callable[[dict], None]) -> None:
    (file,) = folder.rglob("*_results.json")
    results = json.loads(file.read_text())
    edit(results)
    file.write_text(json.dumps(results))


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


@pytest.mark.parametrize(
    ("max_drop", "alpha"), [(-1, 0.05), (float("nan"), 0.05), (1, 1), (1, -0.1), (None, 0)]
)
def test_impossible_limits(checked: Callable[..., Check], max_drop: float | None, alpha: float) -> None:
    with pytest.raises(UserError):
        checked(GOOD, max_drop, alpha)


def test_junit_counts(checked: Callable[..., Check]) -> None:
    result = checked(WORSE[:999], max_drop=1.0)
    root = ElementTree.fromstring(junit(result))
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["run", "df_local"]
    for suite in root:
        assert int(suite.get("tests", "")) == len(suite.findall("testcase"))
        assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure"))
    assert (root.get("tests"), root.get("failures")) == ("3", "2")
    failed = [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None]
    assert failed == ["samples and data", "accuracy"]


def test_the_summary_has_every_comparison_and_flip(
    checked: Callable[..., Check], tmp_path: Path, baseline: Baseline
) -> None:
    text = markdown(checked(WORSE))
    (row,) = [line for line in text.splitlines() if line.startswith("| df_local")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:5] == ["df_local", "accuracy", "60.00", "57.00", "-3.00"]
    assert cells[6:] == ["1.9e-09", "McNemar", "**fails**: significant"]
    assert "below 0.05" in text
    assert "--max-drop" not in text
    bound = markdown(check(load_run(tmp_path / "new"), baseline, 1.0, 0.0))
    assert "**fails**: above --max-drop" in bound
    assert "corrected p" not in bound
    flips = [line for line in text.splitlines() if "no \\| maybe" in line]  # the bar would end the cell
    assert len(flips) == FLIPS_SHOWN


def test_hostile_answers_are_text_in_the_summary_and_in_junit(checked: Callable[..., Check]) -> None:
    texts = [
        "<script>alert(1)</script> ![x](http://e.x/a.png)",
        "a | b\n\n# c",
        "[x](http://e.x) \x1b[31m `y",
    ]
    result = checked(WORSE)
    (task,) = result.tasks
    named = replace(task, task="<b>task|`", failures=(f"lacks {texts[0]}", "1. \n- item"))
    flips = (replace(task.flips[0], question=texts[0], target=texts[1], answer=texts[2]),)
    result = replace(result, run="<img src=x> ![y](z)", tasks=(replace(named, flips=flips),), new=("<b>",))
    page = MarkdownIt("gfm-like", {"linkify": False}).enable("table").parse(markdown(result))
    children = [child for block in page for child in block.children or []]
    own = {"text", "text_special", "softbreak", "strong_open", "strong_close"}
    assert {child.type for child in children} <= own
    assert not {block.type for block in page} & {"html_block", "fence", "code_block", "hr"}
    seen = ["".join(child.content for child in block.children or []) for block in page]
    assert [text.replace("\u2060", "") for text in seen if "alert" in text][-1] == texts[0]
    assert sum(block.type == "tr_open" for block in page) == 2 * 2
    root = ElementTree.fromstring(junit(result).encode())
    assert "<script>" in "".join(str(element.get("message")) for element in root.iter("failure"))


def test_exit_codes(tmp_path: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object) -> object:
        monkeypatch.setattr(sys, "argv", ["dualfocus", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0

    good, worse = write_run(tmp_path / "good", GOOD), write_run(tmp_path / "worse", WORSE)
    base = tmp_path / "kept" / "baseline.json"
    assert run(good, "--baseline", base) == 2  # there is none yet
    assert run(good, "--baseline", base, "--update") == 0
    assert run(good, "--baseline", base) == 0
    assert run(worse, "--baseline", base, "--junit", tmp_path / "j.xml", "--summary", tmp_path / "s.md") == 1
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
    assert (tmp_path / "s.md").read_text().count("\n") > 10
    assert run(worse, "--baseline", base, "--max-drop", 5, "--alpha", 0) == 0
    assert run(tmp_path / "nowhere", "--baseline", base) == 2


def test_the_workflow_in_the_documentation_runs_what_there_is() -> None:
    """Its YAML is whole, actions are pinned by major version, and the commands take the options they get."""
    text = (Path(__file__).parents[3] / "docs" / "ci.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    steps = workflow["jobs"]["check"]["steps"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    (command,) = [step["run"] for step in steps if "dualfocus check" in step.get("run", "")]
    known = {option for item in get_command(cli.app).commands["check"].params for option in item.opts}
    assert {word for word in command.split() if word.startswith("--")} <= known
    (command,) = [step["run"] for step in steps if "dualfocus eval" in step.get("run", "")]
    assert {"--log_samples", "--output_path"} <= set(command.split())
