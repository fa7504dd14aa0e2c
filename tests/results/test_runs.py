"""Runs on disk: the newest one, its samples in order, and those that are not whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dualfocus_lmms import Trace, UserError
from dualfocus_lmms.results.runs import load_run, trace_argument

WriteRun = Callable[..., Path]


def test_a_whole_run(tmp_path: Path, write_run: WriteRun) -> None:
    run = load_run(write_run(tmp_path / "first", [100, 0, 100], order=lambda ids: [2, 0, 1]))
    assert (run.name, run.complete, run.damaged) == ("first", 1.0, ())
    assert run.settings["pretrained"] == "/somewhere/nano"
    task = run.tasks["df_local"]
    assert (task.task, task.split, task.expected, task.data["samples"]) == ("df_local", "test", 3, 3)
    assert task.traces.doc_ids.tolist() == [0, 1, 2]
    assert [trace.key["doc_id"] for trace in task.traces] == [0, 1, 2]
    assert {row["doc_id"]: row["accuracy"] for row in task.rows()} == {0: 100, 1: 0, 2: 100}


@pytest.mark.parametrize("doc_id", [3, 10**9, -1, True, "1", None])
def test_a_logged_sample_of_no_question_is_refused(
    tmp_path: Path, write_run: WriteRun, doc_id: object
) -> None:
    """One of a thousand million would need as many scores."""
    folder = write_run(tmp_path, [100, 0, 100])
    (file,) = folder.rglob("*_samples_df_local.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows[1]["doc_id"] = doc_id
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{file.name}:2 .*doc_id"):
        list(load_run(folder).tasks["df_local"].rows())


def test_the_newest_results_count_with_the_samples_of_the_same_moment(
    tmp_path: Path, write_run: WriteRun
) -> None:
    folder = write_run(tmp_path, [100, 100], date="20261122_235959")
    old = folder / "model" / "20261121_000000_results.json"
    old.write_text(json.dumps({"results": {}}), encoding="utf-8")
    run = load_run(folder)
    assert run.results is not None
    assert run.results["date"] == "20261122_235959"
    assert len(list(run.tasks["df_local"].rows())) == 2


def test_the_traces_that_the_results_name(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run(tmp_path / "run", [100, 0])
    (folder / "traces").rename(tmp_path / "elsewhere")
    assert load_run(folder).complete == 0
    assert load_run(folder, tmp_path / "elsewhere").complete == 1
    name_traces(folder, tmp_path / "elsewhere")
    assert load_run(folder).complete == 1


def name_traces(folder: Path, traces: object) -> None:
    """Has the results of a run name its trace folder, as the host repeats the model arguments."""
    (file,) = folder.rglob("*_results.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    results["config"]["model_args"] = f"pretrained=x,trace={traces},batch_size=2"
    file.write_text(json.dumps(results), encoding="utf-8")


def test_a_copied_run_keeps_its_own_traces(
    tmp_path: Path, write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of both name run/traces, where the newer run's are now."""
    monkeypatch.chdir(tmp_path)
    name_traces(write_run(Path("run"), [100, 0]), "run/traces")
    Path("run").rename("kept")
    name_traces(write_run(Path("run"), [100, 0, 100]), "run/traces")
    assert len(load_run("kept").tasks["df_local"].traces) == 2
    assert len(load_run("run").tasks["df_local"].traces) == 3


def test_a_replay_is_no_run(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run(tmp_path, [100, 0])
    (file,) = folder.rglob("*_results.json")
    results = json.loads(file.read_text())
    results["config"]["model"] = "dualfocus_replay"
    file.write_text(json.dumps(results))
    with pytest.raises(UserError):
        load_run(folder)


@pytest.mark.parametrize(
    ("model_args", "expected"),
    [
        ("pretrained=x,trace=a/b,batch_size=2", "a/b"),
        ("trace=b", "b"),
        ({"pretrained": "x", "trace": "b"}, "b"),
        ("pretrained=retrace=c", None),
        ("", None),
        (None, None),
    ],
)
def test_trace_argument(model_args: object, expected: str | None) -> None:
    found = trace_argument({"config": {"model_args": model_args}})
    assert (None if found is None else found.as_posix()) == expected


def test_a_killed_run_has_traces_alone(
    tmp_path: Path, trace_of: Callable[..., Trace], write_traces: Callable[..., Path]
) -> None:
    folder = write_traces(tmp_path / "traces", [trace_of(4), trace_of(1, task="df_other", split="dev")])
    with (folder / "rank0.jsonl").open("a") as file:
        file.write('{"half a li')
    for given in (folder, tmp_path):
        run = load_run(given)
        assert (run.results, run.complete, len(run.damaged)) == (None, None, 1)
        assert {name: (task.split, len(task.traces)) for name, task in run.tasks.items()} == {
            "df_local": ("test", 1),
            "df_other": ("dev", 1),
        }
        assert list(run.tasks["df_local"].rows()) == []


def test_traces_that_are_missing_lower_the_share(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run(tmp_path, [100] * 4)
    file = folder / "traces" / "rank0.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    assert load_run(folder).complete == 0.75


def test_mistakes(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=folder.name):
            load_run(folder)
    (tmp_path / "a_results.json").write_text("[1]")
    with pytest.raises(UserError, match=r"a_results\.json"):
        load_run(tmp_path)
