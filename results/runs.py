"""Runs on disk: the host's results and samples, and the traces beside them. Knows no task and no model.

run = load_run(Path("results/first"))
print(run.complete, {name: len(task.traces) for name, task in run.tasks.items()})
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import read_data
from dualfocus_lmms.json_text import LONGEST_LINE, Kind, lines
from dualfocus_lmms.replay import MODEL
from dualfocus_lmms.results.replays import ReplayedRun
from dualfocus_lmms.results.trace_columns import TraceColumns
from dualfocus_lmms.trace import read_settings
from dualfocus_lmms.trace_folder import Traces, find_traces, no_traces

RESULTS = "*_results.json"
_AGAIN = "Run the same command with resume=True: nothing is answered twice, and it is written again."


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")  # the rest is the host's


class _Size(_Part):
    original: int
    effective: int


class _Config(_Part):
    model: str | None = None
    model_args: str | dict[str, Any] | None = None
    resolved_cli_args: dict[str, Any] | None = None


class _Results(_Part):
    """What is read of the host's results."""

    results: dict[str, dict[str, Any]] = {}
    higher_is_better: dict[str, dict[str, bool | None]] = {}
    configs: dict[str, dict[str, Any]] = {}
    sizes: dict[str, _Size] = Field({}, alias="n-samples")
    group_subtasks: dict[str, list[str]] = {}
    versions: dict[str, Any] = {}
    config: _Config | None = None


_RESULTS: Kind[_Results] = Kind(_Results)
_ROW: Kind[dict[str, Any]] = Kind(dict[str, Any])


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One task of a run.

    traces: of the samples that have one, by doc_id. expected: how many were to be asked; None where nothing
    tells.
    data: the task's entry in `data.json` (see `integrity`). samples_file: the host's, with --log_samples.
    include_path: the folder that the run took more tasks from. questions: how many the task has; None where
    unknown. columns: what was kept of all traces of the folder, at `traces.rows`; None where nothing was.
    """

    task: str
    split: str
    traces: Traces
    expected: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    samples_file: Path | None = None
    include_path: str | None = None
    questions: int | None = None
    columns: TraceColumns | None = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """What the host logged of each sample (doc_id, target, input, filtered_resps and every metric), in
        no certain order; nothing without --log_samples."""
        if self.samples_file is not None:
            yield from _sample_rows(self.samples_file, self.questions)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind.

    tasks: by name. results: the host's JSON; None of a run that did not end. settings: of run.json; empty
    without traces. damaged: lines of the traces that could not be read. replay_of: the trace folders of a
    replay; none of a run.
    """

    name: str
    tasks: dict[str, TaskRun]
    results: dict[str, Any] | None
    settings: dict[str, Any]
    damaged: tuple[str, ...] = ()
    replay_of: tuple[str, ...] = ()

    @property
    def second(self) -> str | None:
        """The traces of the second run of a replay of two, whose macro answers are the micro ones here."""
        return self.replay_of[1] if len(self.replay_of) > 1 else None

    @property
    def complete(self) -> float | None:
        """The share of the expected samples that have a trace, 0 to 1; None where unknown."""
        expected = [task.expected for task in self.tasks.values()]
        total = sum(number or 0 for number in expected)
        if None in expected or total == 0:
            return None
        return sum(len(task.traces) for task in self.tasks.values()) / total


def load_run(
    folder: str | Path,
    traces: str | Path | None = None,
    keep: Callable[[Mapping[str, Any]], TraceColumns] | None = None,
    replays: bool = False,
) -> Run:
    """The newest run below a folder: its results JSON, the samples files of the same moment, its traces.

    traces: their folder. Else it is the one that the results name (`trace=` in the model arguments), first
    looked for by its last name in `folder`, as that may be a copy; or `<folder>/traces`, or the folder
    itself, which may hold traces alone: those of a run that did not end. keep: makes the columns of the
    tasks from the run's settings; a command that scores answers gives it, so that each trace is read once. A
    replay has none, as its traces are changed when they are read. replays: whether a replay will do, whose
    traces are those of the run, chosen again. UserError when there are neither results nor traces, and for a
    replay otherwise.
    """
    folder = Path(folder)
    file = newest_results(folder)
    results = None if file is None else _read_results(file)
    is_replay = results is not None and (results.get("config") or {}).get("model") == MODEL
    if is_replay and not replays:
        raise UserError(
            f"{folder} holds a replay, whose traces are those of another run with another choice: give the "
            "run itself, or compare both with `dualfocus report`."
        )
    where = Path(traces) if traces is not None else _trace_folder(folder, results)
    if results is None and where is None:
        raise UserError(
            f"No run in {folder}: give the --output_path of a run (with {RESULTS} in it or below it), "
            "or a folder of traces."
        )
    settings = read_settings(where) if where is not None and (where / "run.json").is_file() else {}
    columns = None if keep is None or is_replay else keep(settings)
    each = None if columns is None else columns.add
    found, damaged = (no_traces(), []) if where is None else find_traces(where, each)
    replay = None
    if results is not None and is_replay:
        if where is None:
            raise UserError(
                f"{folder} holds a replay of {trace_argument(results)}, where no traces are: name their "
                "folder with --traces, or start the command in the folder that the replay was started in."
            )
        replay = ReplayedRun.of(results, where, read_settings(where))
        found, settings = replay.asked(found), replay.settings
    data = {} if where is None else read_data(where)
    found, strange = _of_known_questions(found, _questions(results, data))
    tasks = _tasks(results, file, found, data, columns)
    if replay is not None:
        tasks = {
            name: replace(task, traces=replay.chosen(name, task.traces, task.rows()))
            for name, task in tasks.items()
        }
    return Run(
        name=folder.resolve().name,
        tasks=tasks,
        results=results,
        settings=settings,
        damaged=(*damaged, *strange),
        replay_of=() if replay is None else replay.folders,
    )


def newest_results(folder: Path) -> Path | None:
    """The results JSON with the latest date in its name, in a folder or below it."""
    return max(folder.rglob(RESULTS), key=lambda path: path.name, default=None)


def _questions(results: Mapping[str, Any] | None, data: Mapping[str, Any]) -> dict[str, int]:
    """How many questions a task has, as far as a run's files say it."""
    sizes = (results or {}).get("n-samples", {})
    told = {name.split("/")[0]: about["questions"] for name, about in data.items() if "questions" in about}
    return {task: size["original"] for task, size in sizes.items()} | told


def _of_known_questions(traces: Traces, questions: Mapping[str, int]) -> tuple[Traces, list[str]]:
    """(traces, those of questions that the task does not have, by name): such a line is damaged."""
    most = int(np.iinfo(np.int64).max)
    numbers = [min(questions.get(task, most), most) for task, _ in traces.groups]
    limits = np.array(numbers, dtype=np.int64)[traces.places["group"]]
    known = traces.doc_ids < limits
    strange = [
        f"{traces.groups[group][0]}: doc_id {doc_id} of {limit} questions, from 0 on"
        for (group, doc_id), limit in zip(
            traces.places[["group", "doc_id"]][~known].tolist(), limits[~known].tolist(), strict=True
        )
    ]
    return traces.at(known), strange


def _read_results(file: Path) -> dict[str, Any]:
    return _RESULTS.read(file, _AGAIN).model_dump(by_alias=True, exclude_unset=True)


def _trace_folder(folder: Path, results: Mapping[str, Any] | None) -> Path | None:
    """Where the traces of a run are; None when there is no such folder."""
    candidates = [folder / "traces", folder]
    if (named := trace_argument(results)) is not None:
        candidates = [folder / named.name, named, *candidates]
    return next((path for path in candidates if any(path.glob("rank*.jsonl"))), None)


def trace_argument(results: Mapping[str, Any] | None) -> Path | None:
    """The folder in `trace=` of the model arguments that the host's results repeat."""
    given = ((results or {}).get("config") or {}).get("model_args") or ""
    if isinstance(given, Mapping):
        name = given.get("trace")
    else:
        name = (re.findall(r"(?:^|,)\s*trace=([^,]*)", given) or [None])[-1]
    return Path(str(name).strip()).expanduser() if name else None


def _tasks(
    results: Mapping[str, Any] | None,
    file: Path | None,
    traces: Traces,
    data: Mapping[str, Any],
    columns: TraceColumns | None,
) -> dict[str, TaskRun]:
    """By name: the tasks of the results, with the traces they have; without results all that have traces."""
    samples, splits = _by_task(traces)
    results = results or {}
    configs, sizes = results.get("configs", {}), results.get("n-samples", {})
    include_path = ((results.get("config") or {}).get("resolved_cli_args") or {}).get("include_path")
    questions = _questions(results, data)
    tasks = {}
    for task in sorted(sizes or samples):
        split = splits.get(task) or _split(configs.get(task, {}))
        tasks[task] = TaskRun(
            task=task,
            split=split,
            traces=samples.get(task, no_traces()),
            expected=sizes[task]["effective"] if task in sizes else None,
            data=data.get(f"{task}/{split}", {}),
            samples_file=_samples_file(file, task),
            include_path=include_path,
            questions=questions.get(task),
            columns=columns,
        )
    return tasks


def _by_task(traces: Traces) -> tuple[dict[str, Traces], dict[str, str]]:
    """(traces by task, each by doc_id; the split of each task, the last one that comes)."""
    names = np.array([task for task, _ in traces.groups], dtype=object)[traces.places["group"]]
    samples, splits = {}, {}
    for task in dict.fromkeys(task for task, _ in traces.groups):
        some = traces.at(names == task)
        if len(some):
            splits[task] = traces.groups[some.places["group"][-1]][1]
            samples[task] = some.at(np.argsort(some.doc_ids, kind="stable"))
    return samples, splits


def _split(config: Mapping[str, Any]) -> str:
    return config.get("test_split") or config.get("validation_split") or ""


def _samples_file(results: Path | None, task: str) -> Path | None:
    if results is None:
        return None
    path = results.with_name(results.name.replace("_results.json", f"_samples_{task}.jsonl"))
    return path if path.is_file() else None


def _sample_rows(path: Path, questions: int | None) -> Iterator[dict[str, Any]]:
    """The rows of a samples file. UserError for damage, and for no question of the task."""
    number = 1
    try:
        for number, line in lines(path):  # noqa: B007 - named in the message
            if line is None:
                raise ValueError(f"it is longer than {LONGEST_LINE:,} bytes")
            row = _ROW.parse(line)
            doc_id = row.get("doc_id")
            if type(doc_id) is not int or doc_id < 0:
                raise ValueError(f"doc_id: a whole number from 0 on is expected, got {doc_id!r:.80}")
            if questions is not None and doc_id >= questions:
                raise ValueError(f"doc_id {doc_id} of {questions} questions, from 0 on")
            yield row
    except (OSError, ValueError) as error:
        raise UserError(f"{path}:{number} cannot be read ({error}). {_AGAIN}") from error
