"""Runs on disk: the host's results and samples, and the traces beside them. Knows no task and no model.

run = load_run(Path("results/first"))
print(run.complete, {name: len(task.samples) for name, task in run.tasks.items()})
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.trace import Trace, read_settings, read_traces

REPLAY = "dualfocus_replay"  # the model class that answers from traces
RESULTS = "*_results.json"


@dataclass(frozen=True, slots=True)
class SampleRun:
    """One sample. doc: its document; the host keeps none, so it is None until `outcomes` finds it."""

    doc_id: int
    doc: dict[str, Any] | None
    trace: Trace


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One task of a run.

    samples: those with a trace, by doc_id. expected: how many were to be asked; None where nothing tells.
    data: the task's entry in `data.json` (see `integrity`). samples_file: the host's, with --log_samples.
    include_path: the folder that the run took more tasks from.
    """

    task: str
    split: str
    samples: list[SampleRun]
    expected: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    samples_file: Path | None = None
    include_path: str | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """What the host logged of each sample (doc_id, target, input, filtered_resps and every metric), in
        no certain order; nothing without --log_samples."""
        if self.samples_file is not None:
            yield from _json_lines(self.samples_file)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind.

    tasks: by name. results: the host's JSON; None of a run that did not end. settings: of run.json; empty
    without traces. damaged: lines of the traces that could not be read.
    """

    name: str
    tasks: dict[str, TaskRun]
    results: dict[str, Any] | None
    settings: dict[str, Any]
    damaged: tuple[str, ...] = ()

    @property
    def complete(self) -> float | None:
        """The share of the expected samples that have a trace, 0 to 1; None where nothing tells."""
        expected = [task.expected for task in self.tasks.values()]
        total = sum(number or 0 for number in expected)
        if None in expected or total == 0:
            return None
        return sum(len(task.samples) for task in self.tasks.values()) / total


def load_run(folder: str | Path, traces: str | Path | None = None) -> Run:
    """The newest run below a folder: its results JSON, the samples files of the same moment, its traces.

    traces: their folder. Else it is the one that the results name (`trace=` in the model arguments), first
    looked for by its last name in `folder`, as that may be a copy; or `<folder>/traces`, or the folder
    itself, which may hold traces alone: those of a run that did not end. UserError when there are neither
    results nor traces, and for a replay.
    """
    folder = Path(folder)
    file = newest_results(folder)
    results = None if file is None else read_json(file)
    if results is not None and (results.get("config") or {}).get("model") == REPLAY:
        raise UserError(
            f"{folder} holds a replay, whose traces are those of another run with another choice: give the "
            "run itself, or compare the replay's scores as lmms-eval printed them."
        )
    where = Path(traces) if traces is not None else _trace_folder(folder, results)
    if results is None and where is None:
        raise UserError(
            f"No run in {folder}: give the --output_path of a run (with {RESULTS} in it or below it), "
            "or a folder of traces."
        )
    found, damaged = ([], []) if where is None else read_traces(where)
    settings = read_settings(where) if where is not None and (where / "run.json").is_file() else {}
    data = read_json(where / "data.json") if where is not None and (where / "data.json").is_file() else {}
    return Run(
        name=folder.resolve().name,
        tasks=_tasks(results, file, found, data),
        results=results,
        settings=settings,
        damaged=tuple(damaged),
    )


def newest_results(folder: Path) -> Path | None:
    """The results JSON with the latest date in its name, in a folder or below it."""
    return max(folder.rglob(RESULTS), key=lambda path: path.name, default=None)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError when it cannot be read or holds another thing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): give a file as it was written.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: give a file as it was written.")
    return value


def _trace_folder(folder: Path, results: Mapping[str, Any] | None) -> Path | None:
    """Where the traces of a run are; None when there is no such folder."""
    candidates = [folder / "traces", folder]
    if (named := trace_argument(results)) is not None:
        candidates = [folder / named.name, named, *candidates]
    return next((path for path in candidates if any(path.glob("rank*.jsonl"))), None)


def trace_argument(results: Mapping[str, Any] | None) -> Path | None:
    """The folder in `trace=` of the model arguments that the host's results repeat."""
    given = (results or {}).get("config", {}).get("model_args") or ""
    if isinstance(given, Mapping):
        name = given.get("trace")
    else:
        name = (re.findall(r"(?:^|,)\s*trace=([^,]*)", given) or [None])[-1]
    return Path(str(name).strip()).expanduser() if name else None


def _tasks(
    results: Mapping[str, Any] | None, file: Path | None, traces: list[Trace], data: Mapping[str, Any]
) -> dict[str, TaskRun]:
    """By name: the tasks of the results, with the traces they have; without results all that have traces."""
    samples: dict[str, list[SampleRun]] = defaultdict(list)
    splits: dict[str, str] = {}
    for trace in traces:
        samples[trace.key["task"]].append(SampleRun(trace.key["doc_id"], None, trace))
        splits[trace.key["task"]] = trace.key["split"]
    results = results or {}
    configs, sizes = results.get("configs", {}), results.get("n-samples", {})
    include_path = (results.get("config") or {}).get("resolved_cli_args", {}).get("include_path")
    tasks = {}
    for task in sorted(sizes or samples):
        split = splits.get(task) or _split(configs.get(task, {}))
        tasks[task] = TaskRun(
            task=task,
            split=split,
            samples=sorted(samples.get(task, []), key=lambda sample: sample.doc_id),
            expected=sizes[task]["effective"] if task in sizes else None,
            data=data.get(f"{task}/{split}", {}),
            samples_file=_samples_file(file, task),
            include_path=include_path,
        )
    return tasks


def _split(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config.get("validation_split") or ""


def _samples_file(results: Path | None, task: str) -> Path | None:
    if results is None:
        return None
    path = results.with_name(results.name.replace("_results.json", f"_samples_{task}.jsonl"))
    return path if path.is_file() else None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}:{number} cannot be read ({error}): give a file as it was written."
                ) from error
