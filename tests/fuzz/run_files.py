"""The files of a run that the fuzzer damages, and how each is read: traces, results, baselines."""

# ruff: noqa: E501 - tables of files

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuzz.mutations import bent_json, bent_lines
from fuzz.small_files import DATE, QUESTIONS, SETTINGS, put

from dualfocus_lmms import Answer, Selection, Trace, Usage
from dualfocus_lmms.integrity import read_data, write_data
from dualfocus_lmms.trace import TraceWriter, claim_folder
from dualfocus_lmms.trace_folder import find_traces, read_traces
from dualfocus_lmms.types import JointScores, Scores

DOCS = [{"question": row["question"], "options": [], "answers": ["yes"]} for row in QUESTIONS]


def trace(doc_id: int, task: str = "df_local") -> Trace:
    macro = Answer("macro", "yes", (1, 2), (-0.1, -0.2, -0.3), ended=True, usage=Usage(40, 1, 0.25))
    micro = Answer("micro", "no", (2,), (-0.4,), ended=False)
    return Trace(
        key={"task": task, "split": "test", "doc_id": doc_id, "context": "c"},
        question_id=f"{task}/test/{doc_id}",
        prompts={"macro": f"Question {doc_id}?", "locate": "Where?", "micro": "So?"},
        image_size=(60, 40),
        image_hash=f"image {doc_id}",
        selection=Selection("macro", "yes", "ppl", 0.1, (0.1, 0.4)),
        macro=macro,
        locate=replace(macro, pathway="locate", text="[0, 0, 0.5, 0.5]"),
        micro=micro,
        box=(0.0, 0.0, 0.5, 0.5),
        crop=(0, 0, 30, 20),
        ppl={"macro": macro.ppl(), "micro": micro.ppl()},
        judged=JointScores(
            "release", Scores("yes", (-0.5,), (-0.1,)), Scores("no", (), (-0.25,)), seconds=0.5
        ),
        stop=("\n",),
    )


def write_traces(folder: Path, task: str = "df_local") -> None:
    claim_folder(folder, SETTINGS, resume=False)
    writer = TraceWriter(folder)
    writer.write(trace(doc_id, task) for doc_id in range(4))
    writer.close()
    write_data(folder, {f"{task}/test": DOCS})


def write_run(folder: Path) -> None:
    """A run as the host and the model leave it, with its questions."""
    write_traces(folder / "run" / "traces")
    sizes = {"df_local": {"original": 4, "effective": 4}}
    results = {
        "results": {"df_local": {"alias": "df_local", "accuracy,none": 75.0, "accuracy_stderr,none": 25.0}},
        "group_subtasks": {},
        "higher_is_better": {"df_local": {"accuracy": True}},
        "configs": {"df_local": {"task": "df_local", "test_split": "test"}},
        "versions": {"df_local": 1.0},
        "n-samples": sizes,
        "config": {
            "model": "dualfocus",
            "model_args": "pretrained=nano,trace=traces",
            "resolved_cli_args": {},
        },
        "model_name": "nano",
        "date": DATE,
    }
    put(folder / "run" / "model" / f"{DATE}_results.json", results)
    rows = [
        {
            "doc_id": doc_id,
            "input": "Q?",
            "target": "yes",
            "filtered_resps": ["yes"],
            "accuracy": 100.0 * (doc_id > 0),
        }
        for doc_id in range(4)
    ]
    put(folder / "run" / "model" / f"{DATE}_samples_df_local.jsonl", rows)


def resume(folder: Path) -> None:
    """Nothing is lost but the damaged lines, and the folder goes on."""
    finished, damaged = read_traces(folder)
    kept = {found.key["doc_id"] for found in finished}
    lines = (folder / "rank0.jsonl").read_bytes().split(b"\n")
    for doc_id in range(4):
        line = trace(doc_id).to_json().encode()
        assert line not in lines or doc_id in kept, f"the trace of {doc_id}"
    assert all(entry.startswith("rank0.jsonl:") for entry in damaged)
    claim_folder(folder, SETTINGS, resume=True)
    TraceWriter(folder).close()
    write_data(folder, {"df_local/test": QUESTIONS})


def finish(folder: Path) -> None:
    """A run ends whatever its data.json holds, and it is whole then."""
    write_data(folder, {"df_local/test": QUESTIONS})
    assert read_data(folder)["df_local/test"]["samples"] == 4


@functools.cache
def whole_baseline() -> Any:
    import tempfile

    from dualfocus_lmms.results.baseline import Baseline
    from dualfocus_lmms.results.runs import load_run

    with tempfile.TemporaryDirectory() as name:
        write_run(Path(name))
        return Baseline.of(load_run(Path(name) / "run"))


def check(folder: Path) -> None:
    from dualfocus_lmms.results.gate import report
    from dualfocus_lmms.results.gate.check import check as gate
    from dualfocus_lmms.results.runs import load_run

    result = gate(load_run(folder / "run"), whole_baseline())
    report.markdown(result)
    report.junit(result)


def baseline(folder: Path) -> None:
    from dualfocus_lmms.results.baseline import Baseline
    from dualfocus_lmms.results.gate import report
    from dualfocus_lmms.results.gate.check import check as gate
    from dualfocus_lmms.results.runs import load_run

    report.markdown(gate(load_run(folder / "run"), Baseline.load(folder / "baseline.json")))


def write_baseline(folder: Path) -> None:
    write_run(folder)
    whole_baseline().save(folder / "baseline.json")


def leaderboard(folder: Path) -> None:
    from dualfocus_lmms.results.leaderboard import records
    from dualfocus_lmms.results.runs import load_run

    records.record(load_run(folder / "run"), "a machine")


def write_record(folder: Path) -> None:
    from dualfocus_lmms.results.leaderboard import records
    from dualfocus_lmms.results.runs import load_run

    write_run(folder)
    (folder / "published").mkdir()
    made = records.add(records.record(load_run(folder / "run"), "a machine"), folder)
    made.rename(made.with_name("record.json"))


def read_records(folder: Path) -> None:
    from dualfocus_lmms.results.leaderboard import table

    for form in ("md", "csv", "html"):
        table.render(table.leaderboard(folder, None), form)


def replay(folder: Path) -> None:
    from dualfocus_lmms.models.host.replay import Recorded, choose_again
    from dualfocus_lmms.models.host.replay_options import ReplayOptions

    run = Recorded.read(str(folder))
    options = ReplayOptions.of({"trace": str(folder), "select": "micro"})
    list(choose_again(find_traces(folder)[0], options.settings(run.settings)))


@functools.cache
def _local_task(place: str) -> Any:
    from dualfocus_lmms.tasks.common.score import load_task

    os.environ.setdefault("LMMS_EVAL_DATASETS_CACHE", place)
    return load_task("df_local")


def write_report(folder: Path) -> None:
    write_run(folder)
    put(folder / "questions.jsonl", QUESTIONS)
    os.environ["DUALFOCUS_LOCAL"] = str(folder / "questions.jsonl")
    _local_task(str(folder))


def report(folder: Path) -> None:
    from dualfocus_lmms.results import outcomes
    from dualfocus_lmms.results.report import build

    original = outcomes.load_task
    outcomes.load_task = lambda *_, **__: _local_task("")  # the questions are whole: loading takes a second
    try:
        build.report([folder / "run"], folder / "report", images=0)
    finally:
        outcomes.load_task = original
    assert (folder / "report" / "report.html").stat().st_size > 0


def readers(make: Callable[..., Any]) -> list[Any]:
    """Those of runs; weight is about what one reading costs."""
    results, rows = f"run/model/{DATE}_results.json", f"run/model/{DATE}_samples_df_local.jsonl"
    traces, data = "run/traces/rank0.jsonl", "run/traces/data.json"
    return [
        make("traces, resumed", "rank0.jsonl", write_traces, resume, bent_lines, 4),
        make("run.json, resumed", "run.json", write_traces, resume, bent_json),
        make("data.json, at a run's end", "data.json", write_traces, finish, bent_json),
        make("traces, replayed", "rank0.jsonl", write_traces, replay, bent_lines),
        make("run.json, replayed", "run.json", write_traces, replay, bent_json),
        *(
            make(f"{name}, checked", file, write_run, check, mutation)
            for name, file, mutation in (
                ("traces", traces, bent_lines), ("data.json", data, bent_json), ("results", results, bent_json),
                ("logged samples", rows, bent_lines),
            )
        ),
        make("baseline", "baseline.json", write_baseline, baseline, bent_json),
        make("results, recorded", results, write_run, leaderboard, bent_json),
        make("record", "runs/record.json", write_record, read_records, bent_json),
        *(
            make(f"{name}, reported", file, write_report, report, mutation, 0.02)
            for name, file, mutation in (("traces", traces, bent_lines), ("results", results, bent_json))
        ),
    ]  # fmt: skip
