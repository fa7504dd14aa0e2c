"""lmms-eval's scoring: aggregation, standard errors, groups; and a whole run with what it leaves on disk."""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

LookUp = Callable[[str], Any]


class Toy:
    """Functions of a task; the host calls them from its configuration."""

    @staticmethod
    def documents(dataset: Any) -> Any:
        return Dataset.from_list([{"question": str(number), "answer": "yes"} for number in range(4)])

    @staticmethod
    def prompt(doc: dict[str, Any]) -> str:
        return doc["question"]

    @staticmethod
    def results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        right = 100.0 if results[0] == "yes" else 0.0
        return {"accuracy": right, "f1": right, "f1_stderr": right}

    @staticmethod
    def half(values: list[float]) -> float:
        return sum(values) / 2

    @staticmethod
    def error(values: list[float]) -> float:
        return 7.5


@pytest.fixture
def task(foreign: LookUp, tmp_path: Path) -> Any:
    """A task of four questions with a mean, a function, and that function's standard error."""
    foreign("lmms_eval.api.metrics")  # without it the host knows no "mean"
    metrics = [("accuracy", "mean"), ("f1", Toy.half), ("f1_stderr", Toy.error)]
    return foreign("lmms_eval.api.task:ConfigurableMessagesTask")(
        config={
            "task": "toy",
            "dataset_path": "text",
            "dataset_kwargs": {"data_files": {"test": __file__}, "cache_dir": str(tmp_path / "cache")},
            "test_split": "test",
            "process_docs": Toy.documents,
            "doc_to_text": Toy.prompt,
            "doc_to_target": "answer",
            "process_results": Toy.results,
            "metadata": {"version": 1.0},
            "metric_list": [
                {"metric": name, "aggregation": how, "higher_is_better": True} for name, how in metrics
            ],
        }
    )


def scores_of(foreign: LookUp, task: Any, replies: list[str]) -> dict[str, Any]:
    """As `dualfocus score` has them: by the host's own aggregation, under the filter "none"."""
    output = foreign("lmms_eval.evaluator_utils:TaskOutput.from_taskdict")("toy", task)
    for doc, reply in zip(task.eval_docs, replies, strict=True):
        for metric, value in task.process_results(doc, [reply]).items():
            output.sample_metrics[metric, "none"].append(value)
    output.calculate_aggregate_metric()
    return foreign("lmms_eval.evaluator_utils:consolidate_results")([output])[0]["toy"]


def test_metrics_are_aggregated_and_named_by_their_filter(foreign: LookUp, task: Any) -> None:
    """`dualfocus score` and the report: they read "metric,none" of what `consolidate_results` gives."""
    scores = scores_of(foreign, task, ["yes", "no", "yes", "yes"])
    assert (scores["accuracy,none"], scores["f1,none"]) == (75.0, 150.0), "TaskOutput, consolidate_results"


def test_a_mean_has_its_standard_error(foreign: LookUp, task: Any) -> None:
    """`dualfocus score` and the report: under "metric_stderr,none", in the metric's unit."""
    values = [100.0, 0.0, 100.0, 100.0]
    error = scores_of(foreign, task, ["yes", "no", "yes", "yes"])["accuracy_stderr,none"]
    assert error == pytest.approx(statistics.stdev(values) / 2), "stderr_for_metric of a mean"


def test_a_metric_of_that_name_becomes_the_standard_error(foreign: LookUp, task: Any) -> None:
    """The tasks: precision, F1 and CircularEval give their standard errors as a metric <name>_stderr."""
    assert scores_of(foreign, task, ["yes"] * 4)["f1_stderr,none"] == 7.5, "consolidate_results"


def test_the_filter_of_a_task_without_filters_is_none(task: Any) -> None:
    """Every reader of results: the name stands in each metric's key."""
    names = [ensemble.name for ensemble in task._filters]
    assert names == ["none"], f'a task without filters has the filters {names}, not "none"'


def test_a_group_calls_its_aggregation_with_three_arguments(foreign: LookUp, task: Any) -> None:
    """The group of POPE: the number of questions without an image is the sum over its tasks."""
    calls: list[Any] = []

    def total(values: Any, sizes: Any, weight_by_size: bool) -> int:
        calls.append((list(values), list(sizes), weight_by_size))
        return sum(values)

    wanted = {"metric": "missing", "aggregation": total, "weight_by_size": False}
    group = foreign("lmms_eval.api.group:ConfigurableGroup")(
        config={"group": "all", "task": ["toy"], "aggregate_metric_list": [wanted]}
    )
    results = {"toy": {"missing,none": 3, "missing_stderr,none": "N/A", "samples": 4}, "all": {}}
    merge = foreign("lmms_eval.evaluator_utils:consolidate_group_results")
    merged, *_ = merge(results, {}, {group: {"toy": task}})
    assert calls == [([3], [4], False)], "consolidate_group_results"
    assert merged["all"]["missing,none"] == 3, "consolidate_group_results"


@pytest.fixture
def run(foreign: LookUp, task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a whole run hands to a model, gives back and writes."""
    patched = "_enable_reentrant_filelocks"  # changes a class of filelock for the whole process
    monkeypatch.setattr(foreign("lmms_eval.evaluator"), patched, lambda: None, raising=False)
    events: list[str] = []
    result, counts = (
        foreign(f"lmms_eval.api.instance:{name}") for name in ("GenerationResult", "TokenCounts")
    )

    class Extras(counts):
        def to_dict(self) -> dict[str, Any]:
            return {"dualfocus": {"pathway": "micro"}}

    class Model(foreign("lmms_eval.api.model:lmms")):
        is_simple = False

        def generate_until(self, requests: Any) -> list[Any]:
            events.append(f"asked {len(requests)}")
            for request in requests:
                _, _, _, doc_id, name, split = request.args
                events.append(self.task_dict[name][split][doc_id]["question"])
            return [result("yes", Extras()) for _ in requests]

        def clean(self) -> None:
            events.append(f"clean {len(self.task_dict['toy']['test'])}")

        def generate_until_multi_round(self, requests: Any) -> Any: ...

        def loglikelihood(self, requests: Any) -> Any: ...

    score = task.config.process_results
    task.config.process_results = lambda doc, said: events.append("score") or score(doc, said)
    args = Namespace(process_with_media=False, include_path="folder", reasoning_tags=None)
    tracker = foreign("lmms_eval.loggers.evaluation_tracker:EvaluationTracker")(output_path=str(tmp_path))
    results = foreign("lmms_eval.evaluator:simple_evaluate")(
        model=Model(), model_args="trace=folder", tasks=[task], evaluation_tracker=tracker, cli_args=args,
        limit=3, task_manager=foreign("lmms_eval.tasks:TaskManager")(include_defaults=False),
        bootstrap_iters=0, datetime_str="20270101_000000", process_docs_parallel=1,
    )  # fmt: skip
    tracker.general_config_tracker.model_name_sanitized = "model"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples, datetime_str="20270101_000000")
    tracker.save_results_samples(task_name="toy", samples=samples["toy"])
    (written,) = (tmp_path / "model").glob("*_results.json")
    listed = written.with_name(written.name.replace("_results.json", "_samples_toy.jsonl"))
    rows = [json.loads(line) for line in listed.read_text().splitlines()] if listed.is_file() else []
    return {"events": events, "results": json.loads(written.read_text()), "rows": rows, "path": written}


def test_a_run_leaves_what_reports_read(run: dict[str, Any]) -> None:
    """The readers of runs, the leaderboard, the gate, and the model classes: one run, so that it takes its
    time once. Any key under another name, and a report says nothing of it."""
    events, results, rows = run["events"], run["results"], run["rows"]
    assert events[:4] == ["asked 3", "0", "1", "2"], "lmms.generate_until: all requests at once, by task_dict"
    assert events[4:] == ["clean 4", "score", "score", "score"], "lmms.clean comes before the host scores"
    assert run["path"].name == "20270101_000000_results.json", "EvaluationTracker: the name of the results"
    assert results["results"]["toy"]["accuracy,none"] == 100.0, "results"
    assert results["n-samples"]["toy"] == {"original": 4, "effective": 3}, "n-samples"
    assert results["higher_is_better"]["toy"]["accuracy"] is True, "higher_is_better"
    assert results["configs"]["toy"]["test_split"] == "test", "configs"
    assert results["versions"]["toy"] == 1.0, "versions"
    assert results["group_subtasks"] == {"toy": []}, "group_subtasks"
    assert results["config"]["model_args"] == "trace=folder", "config.model_args"
    assert results["config"]["resolved_cli_args"]["include_path"] == "folder", "config.resolved_cli_args"
    assert results["date"] == "20270101_000000", "date"
    assert [row["doc_id"] for row in rows] == [0, 1, 2], "the samples file beside the results"
    assert rows[0]["accuracy"] == 100.0, "the samples file holds every metric of a sample"
    assert rows[0]["filtered_resps"] == "yes", "filtered_resps"
    assert (rows[0]["input"], rows[0]["target"]) == ("0", "yes"), "input, target"
    assert rows[0]["token_counts"] == [{"dualfocus": {"pathway": "micro"}}], (
        "token_counts: what to_dict gives"
    )


def test_how_answers_of_documents_and_a_letter_are_scored(foreign: LookUp) -> None:
    anls = foreign("lmms_eval.api.metrics:anls")
    assert anls(references=["Paris"], predictions=["in  paris"]) == {"anls": pytest.approx(1 - 3 / 9)}
    assert foreign("lmms_eval.tasks.chartqa.utils:relaxed_correctness")("14.7", "14") is True
    score = foreign("lmms_eval.tasks.ocrbench.utils:ocrbench_process_results")
    doc = {"dataset": "svt", "answer": ["centre"], "question_type": "Doc-oriented VQA"}
    assert score(doc, ["The Centre"])["ocrbench_accuracy"]["score"] == 1
    letter = foreign("lmms_eval.tasks.mme_realworld.utils:extract_characters_regex")
    assert (letter("red", ["(A) blue", "(B) red"]), letter("C.", ["(A) blue"])) == ("B", "C")
