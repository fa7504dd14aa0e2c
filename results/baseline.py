"""The baseline: what a run scored, in one small file that later runs are compared with.

It keeps for each task its metrics, fingerprints of the questions and images, and the score of every answer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import save_text
from dualfocus_lmms.json_text import STRICT, Kind
from dualfocus_lmms.results.outcomes import ACCURACY, number
from dualfocus_lmms.results.runs import Run, TaskRun

VERSION: Literal[1] = 1
FINGERPRINTS = ("prompts", "images", "questions_fingerprint")
_DECIMALS = 3  # of the score of one answer
_NUMBERS = re.compile(r"\[\s+((?:-?[\d.]+|null)(?:,\s+(?:-?[\d.]+|null))*)\s+\]")


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's value, its standard error in the same unit (None where there is none), and whether more is
    better; None where neither is."""

    value: float
    error: float | None
    higher_is_better: bool | None


@dataclass(frozen=True, slots=True)
class TaskScores:
    """What a task or a group scored.

    samples: how many answers were scored; None for a group. data: fingerprints. metric: whose scores the
    answers have; plain: whether its value is their mean, so that two of them may be compared in pairs.
    scores: of each doc_id, from 0 on; None where there is none. Empty without --log_samples, and for a group.
    """

    metrics: dict[str, Figure]
    samples: int | None = None
    data: dict[str, Any] = field(default_factory=dict)
    metric: str = ACCURACY
    plain: bool = False
    scores: list[float | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one run scored, by task and group. date, versions and settings are the run's own."""

    name: str
    date: str
    versions: dict[str, str]
    settings: dict[str, Any]
    tasks: dict[str, TaskScores]
    version: Literal[1] = VERSION

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    @classmethod
    def of(cls, run: Run) -> Baseline:
        """What a run scored. A run that did not end has no metrics."""
        results = run.results or {}
        scored = results.get("results", {})
        tasks = {name: _task_scores(task, results) for name, task in run.tasks.items()}
        groups = {name: TaskScores(_figures(name, results)) for name in scored if name not in tasks}
        settings = {name: value for name, value in run.settings.items() if name != "versions"}
        if isinstance(settings.get("pretrained"), str):  # a folder has another place on every machine
            settings["pretrained"] = Path(settings["pretrained"]).name
        return cls(
            name=run.name,
            date=str(results.get("date", "")),
            versions=dict(run.settings.get("versions", {})),
            settings=settings,
            tasks={**tasks, **{name: group for name, group in groups.items() if group.metrics}},
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON; the scores of a task stand on one line."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False)
        text = _NUMBERS.sub(lambda found: "[" + "".join(found[1].split()) + "]", text)
        save_text(path, text + "\n", "baseline")

    @classmethod
    def load(cls, path: str | Path) -> Baseline:
        """The baseline that `save` wrote. UserError when there is none, or it is of another form."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"No baseline at {path}: write one from a run that is good, with --update.")
        return _BASELINE.read(
            path,
            f"A baseline of version {VERSION} is expected: restore it, or write a new one from a run that is "
            "good, with --update.",
        )


_BASELINE: Kind[Baseline] = Kind(Baseline)


def _task_scores(task: TaskRun, results: Mapping[str, Any]) -> TaskScores:
    figures = _figures(task.task, results)
    metric = ACCURACY if ACCURACY in figures or not figures else next(iter(figures))
    rows = {row["doc_id"]: row.get(metric) for row in task.rows()}
    scores = {key: _short(score) for key, value in rows.items() if (score := number(value)) is not None}
    samples = len(rows) if task.samples_file is not None else task.expected if results else len(task.samples)
    return TaskScores(
        metrics=figures,
        samples=samples,
        data=_fingerprints(task, results),
        metric=metric,
        plain=bool(scores) and not any(isinstance(value, Mapping) for value in rows.values()),
        scores=[scores.get(doc_id) for doc_id in range(max(scores, default=-1) + 1)],
    )


def _short(score: float) -> float:
    """Rounded; a whole number without its ".0", which most are."""
    return int(score) if score.is_integer() else round(score, _DECIMALS)


def _figures(task: str, results: Mapping[str, Any]) -> dict[str, Figure]:
    """The host's numbers of a task or group, in its order."""
    values = results.get("results", {}).get(task, {})
    directions = results.get("higher_is_better", {}).get(task, {})
    figures = {}
    for name, value in values.items():
        metric, _, filter_name = name.partition(",")
        if filter_name == "none" and metric in directions and not metric.endswith("_stderr"):
            value, error = _float(value), _float(values.get(f"{metric}_stderr,none"))
            if value is not None:
                figures[metric] = Figure(value, error, directions[metric])
    return figures


def _float(value: Any) -> float | None:
    """A finite number, else None: the host writes "N/A" where it has none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _fingerprints(task: TaskRun, results: Mapping[str, Any]) -> dict[str, Any]:
    """From the traces; that of the questions from the results too, where the task has it as a metric."""
    known = {name: task.data[name] for name in FINGERPRINTS if name in task.data}
    recorded = results.get("results", {}).get(task.task, {}).get("questions_fingerprint,none")
    return known if recorded is None else {"questions_fingerprint": recorded, **known}
