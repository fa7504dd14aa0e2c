"""Numbers to compare with, as data: what papers print, and what our own runs measured.

    dualfocus leaderboard --add results/first --hardware "one A100"

`published/*.json` has one file for each paper, table by table as printed; a cell that is unknown is null.
`runs/*.json` has one file for each run, which is never written again.
"""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import save_text
from dualfocus_lmms.json_text import Kind
from dualfocus_lmms.results.baseline import FINGERPRINTS, Baseline, Figure, TaskScores
from dualfocus_lmms.results.runs import Run

FOLDER = Path(__file__).parents[1] / "data"  # the package's own numbers: read anywhere, written in a checkout
PUBLISHED, RUNS = "published", "runs"

Unit = Literal["percent", "points", "score", "ms", "GB"]  # points: a difference of percentages
Pathway = Literal["selected", "macro", "micro"]
Text = Annotated[str, Field(min_length=1)]

COUNTS = {"questions_without_image", "incomplete_questions"}  # metrics that count questions
LARGEST = {"mme_perception_score": 2000.0, "mme_cognition_score": 800.0}  # metrics that are no percentage
UNIT_RANGES: dict[Unit, tuple[float, float]] = {
    "percent": (0, 100),
    "points": (-100, 100),
    "score": (0, 2000),
    "ms": (0, float("inf")),
    "GB": (0, float("inf")),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- published ---------------------------------------------------------------------------------------------


class Column(_Strict):
    """printed: its heading in the paper. task, metric: what it is here; a task without `df_` is not ours."""

    printed: Text
    task: Text
    metric: Text
    unit: Unit = "percent"


class PublishedRow(_Strict):
    """row: as the paper calls it. values: one for each column, as printed."""

    row: Text
    model: Text
    method: Text
    values: list[float | None]


class PublishedTable(_Strict):
    """table: where in the paper. n: its number of questions, where the paper gives it."""

    table: Text
    columns: list[Column] = Field(min_length=1)
    rows: list[PublishedRow] = Field(min_length=1)
    n: int | None = Field(None, gt=0)
    note: str = ""

    @model_validator(mode="after")
    def _fits(self) -> PublishedTable:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(f"{row.row}: {len(row.values)} values for {len(self.columns)} columns")
            for column, value in zip(self.columns, row.values, strict=True):
                low, high = UNIT_RANGES[column.unit]
                if value is not None and not low <= value <= high:
                    raise ValueError(f"{row.row}: {column.printed} must be {low} to {high}, not {value}")
        return self


class Paper(_Strict):
    """short: its name in a table."""

    title: Text
    short: Text
    year: int = Field(ge=2015, le=2100)
    url: str = Field(pattern=r"^https://\S+$")
    note: str = ""


class Published(_Strict):
    paper: Paper
    tables: list[PublishedTable] = Field(min_length=1)


# --- measured ----------------------------------------------------------------------------------------------


class Score(_Strict):
    """error: the standard error, in the unit of the value; None where there is none."""

    value: float
    error: float | None = Field(None, ge=0)


class Located(_Strict):
    """Where a run looked, against the annotated regions: means over `n` samples that had a second look, or
    should have; without a crop both are 0. iou: 0 to 1. coverage: the share of the regions shown, in percent.
    """

    n: int = Field(gt=0)
    iou: float = Field(ge=0, le=1)
    coverage: float = Field(ge=0, le=100)


class MeasuredTask(_Strict):
    """n: questions that were answered. questions: those of the task, with those whose image was missing.

    version: of the task. fingerprints: see `integrity`. scores: by pathway and metric; "selected" is what the
    run itself scored. located: None where no region is annotated, or it was not computed.
    """

    n: int = Field(gt=0)
    questions: int = Field(gt=0)
    version: str
    fingerprints: dict[str, str]
    scores: dict[Pathway, dict[str, Score]]
    located: Located | None = None

    @model_validator(mode="after")
    def _in_range(self) -> MeasuredTask:
        if not self.scores.get("selected"):
            raise ValueError("no score of the run itself")
        for scores in self.scores.values():
            for metric, score in scores.items():
                high = self.questions if metric in COUNTS else LARGEST.get(metric, 100.0)
                if not 0 <= score.value <= high:
                    raise ValueError(f"{metric} must be 0 to {high:g}, not {score.value}")
        return self


class Measured(_Strict):
    """One run. finished: when, by the host's clock. commit: of this package's checkout when the run was
    recorded, "-dirty" where files differed; None outside a checkout."""

    finished: datetime.datetime
    hardware: Text
    commit: str | None
    model: Text
    method: Text
    versions: dict[str, str]
    settings: dict[str, Any]
    tasks: dict[str, MeasuredTask] = Field(min_length=1)
    headline: list[str] = Field(min_length=1)

    @property
    def name(self) -> str:
        """Of its file, without ending: when, which model, which tasks or groups were requested."""
        more = len(self.headline) - 3
        words = [self.model, *self.headline[:3], *([f"{more}-more"] if more > 0 else [])]
        slugs = [re.sub(r"[^a-z0-9_.]+", "-", word.lower()).strip("-") for word in words]
        return "-".join([f"{self.finished:%Y-%m-%d-%H%M%S}", *slugs])


def record(run: Run, hardware: str, pathways: bool = False) -> Measured:
    """What a run measured.

    hardware: in words. pathways: score the macro and the micro answers too, for which the task's questions
    are read again. UserError for a run that did not end.
    """
    if run.results is None:
        raise UserError(f"The run {run.name} did not end: finish it first, with resume=True.")
    if not hardware.strip():
        raise UserError('No hardware: say in words what the run ran on, as in --hardware "one A100".')
    scored = Baseline.of(run)
    found = {name: task for name, task in scored.tasks.items() if task.metrics}
    if not found:
        raise UserError(f"The results of {run.name} have no score: give a run whose tasks were scored.")
    both, located = _pathway_scores(run) if pathways else ({}, {})
    groups = run.results.get("group_subtasks", {})
    inside = {name for group, members in groups.items() if group in found for name in members}
    try:
        return Measured(
            finished=_finished(run.results),
            hardware=hardware.strip(),
            commit=_commit(),
            model=str(scored.settings.get("pretrained") or run.results.get("model_name") or run.name),
            method=method(scored.settings),
            versions=scored.versions,
            settings=scored.settings,
            tasks={
                name: _task(name, task, run.results, both.get(name, {}), located.get(name))
                for name, task in found.items()
            },
            headline=[name for name in found if name not in inside],
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"The results of the run {run.name} cannot be recorded: {place}: {fault['msg']}, got "
            f"{fault['input']!r:.80}. Run it again, or restore its file of results."
        ) from error


_USUAL = {"grounding": "model", "box_shift": 0, "skip_confidence": 1.0, "chat_template": "auto"}


def method(settings: Mapping[str, Any]) -> str:
    """How the answers came about, from the settings in run.json: what is not the protocol's own is named."""
    if not settings:
        return "plain"
    if settings.get("pathway") == "macro":
        return "macro only"
    extra = {name: settings[name] for name, usual in _USUAL.items() if settings.get(name, usual) != usual}
    if settings.get("prompts", settings.get("protocol")) != settings.get("protocol"):
        extra["prompts"] = settings["prompts"]
    return ", ".join(
        [f"DualFocus {settings.get('protocol', '')}".strip(), str(settings.get("select", ""))]
        + [f"{name} {value}" for name, value in extra.items()]
    )


def _task(
    name: str,
    task: TaskScores,
    results: Mapping[str, Any],
    others: Mapping[Pathway, dict[str, Score]],
    located: Located | None,
) -> MeasuredTask:
    members = list(_members(name, results))
    known = results.get("n-samples", {})
    if unknown := [member for member in members if member not in known]:
        raise UserError(
            f"The results of the run do not tell how many questions {', '.join(unknown)} asked: give the "
            "JSON that the host wrote."
        )
    sizes = [known[member] for member in members]
    missing = sum(_missing(member, results) for member in members)
    return MeasuredTask(
        n=sum(size["effective"] for size in sizes),
        questions=sum(size["original"] for size in sizes) + missing,
        version=str(results.get("versions", {}).get(name)),
        fingerprints={key: task.data[key] for key in FINGERPRINTS if key in task.data},
        scores={"selected": _scores(task.metrics), **others},
        located=located,
    )


def _scores(figures: Mapping[str, Figure]) -> dict[str, Score]:
    return {name: Score(value=figure.value, error=figure.error) for name, figure in figures.items()}


def _members(name: str, results: Mapping[str, Any]) -> Iterator[str]:
    """The tasks of a group, or the task itself."""
    members = results.get("group_subtasks", {}).get(name)
    if not members:
        yield name
    for member in members or ():
        yield from _members(member, results)


def _missing(task: str, results: Mapping[str, Any]) -> int:
    value = results["results"].get(task, {}).get("questions_without_image,none")
    return int(value) if isinstance(value, (int, float)) else 0


def _pathway_scores(run: Run) -> tuple[dict[str, dict[Pathway, dict[str, Score]]], dict[str, Located]]:
    """By task: what its macro and its micro answers are worth, and where it looked, if regions are annotated.
    UserError without a second look."""
    from dualfocus_lmms.results.coverage import should_have_looked
    from dualfocus_lmms.results.outcomes import outcomes

    if run.settings.get("pathway") == "macro" or not any(task.traces for task in run.tasks.values()):
        raise UserError(
            f"The run {run.name} has no second look to score by itself: it needs the traces of a run with "
            "pathway=both. Leave --pathways out."
        )
    found: dict[str, dict[Pathway, dict[str, Score]]] = {}
    located: dict[str, Located] = {}
    for name, task in run.tasks.items():
        if task.traces:
            answers = outcomes(task)
            ways: tuple[Literal["macro", "micro"], ...] = ("macro", "micro")
            found[name] = {
                way: {
                    metric.name: Score(value=metric.value, error=metric.error)
                    for metric in answers.aggregates(way)
                }
                for way in ways
            }
            looked = should_have_looked(answers.table)
            if len(looked):
                iou, shown = (float(looked[column].fillna(0).mean()) for column in ("iou", "coverage"))
                located[name] = Located(n=len(looked), iou=iou, coverage=100 * shown)
    return found, located


def _finished(results: Mapping[str, Any]) -> datetime.datetime:
    date = str(results.get("date"))
    try:
        return datetime.datetime.strptime(date, "%Y%m%d_%H%M%S")
    except ValueError as error:
        raise UserError(
            f"The results of the run say {date!r} as their date: give the JSON that the host wrote."
        ) from error


def _commit() -> str | None:
    """Of the checkout that this package runs from; None when it runs from none."""
    root = _root()
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here
        return None


# --- files -------------------------------------------------------------------------------------------------


def _root() -> Path:
    """The folder that dualfocus_lmms/ lies in: the checkout, or where packages are installed."""
    return FOLDER.parents[2]


def own_folder() -> Path:
    """The package's own numbers, to add to them. UserError in an installed copy, which is not written to."""
    if not (_root() / "setup.cfg").is_file():
        raise UserError(
            f"{FOLDER} belongs to an installed copy, which an update replaces: name a folder of your own "
            "with --folder."
        )
    return FOLDER


Model = TypeVar("Model", bound=BaseModel)


def read_published(folder: Path = FOLDER) -> list[Published]:
    return [_read(path, Published) for path in sorted((folder / PUBLISHED).glob("*.json"))]


def read_measured(folder: Path = FOLDER) -> dict[str, Measured]:
    """By the name of the file, with its folder."""
    return {f"{RUNS}/{path.name}": _read(path, Measured) for path in sorted((folder / RUNS).glob("*.json"))}


def _read(path: Path, model: type[Model]) -> Model:
    advice = "Restore it; a record of a run may be deleted and made again, with --add."
    found = Kind[Model](model).read(path, advice)
    try:
        found.model_dump_json()
    except ValueError as error:  # half a character, which no table can show
        raise UserError(f"{path} cannot be read ({error}). {advice}") from error
    return found


def add(measured: Measured, folder: Path | None = None) -> Path:
    """Write a record into its own file. UserError if the file exists: no record is ever rewritten.

    folder: None is the package's own, in a checkout alone (see `own_folder`).
    """
    path = (folder or own_folder()) / RUNS / f"{measured.name}.json"
    if path.exists() and _is_whole(path):
        raise UserError(f"{path} exists: this run was added before, and what was measured is never changed.")
    save_text(path, measured.model_dump_json(indent=1) + "\n", "record")
    return path


def _is_whole(path: Path) -> bool:
    """Whether a record can be read; what a full disk left of one may be written again."""
    try:
        _read(path, Measured)
    except UserError:
        return False
    return True
