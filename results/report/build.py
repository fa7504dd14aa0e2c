"""`dualfocus report`: what runs did, as an HTML page, Markdown and CSV files. Works from files only.

    dualfocus report results/first --out report

The page asks nothing of any network. A run that was killed has a report too, which says what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.files import atomic_write, writable
from dualfocus_lmms.images import open_image, set_up_pillow
from dualfocus_lmms.integrity import each_doc
from dualfocus_lmms.results.outcomes import Outcomes, outcomes
from dualfocus_lmms.results.report import accuracy as right
from dualfocus_lmms.results.report import (
    box_tables,
    budgets,
    comparison,
    confidence,
    gallery,
    notices,
    page,
    plots,
    report_files,
    tables,
)
from dualfocus_lmms.results.report.tables import Table
from dualfocus_lmms.results.runs import Run, load_run
from dualfocus_lmms.results.trace_columns import TraceColumns

if TYPE_CHECKING:
    from datasets import Dataset
    from lmms_eval.api.task import ConfigurableTask

# Columns of documents that say what kind of question it is; the first one that a task has.
KINDS = ("dimension", "ability", "category", "kind", "question_type", "type", "semantic")
MOST_KINDS = 40  # a column with more values, as ids are, names no kinds
FACTS = (
    "pretrained",
    "second",
    "protocol",
    "select",
    "grounding",
    "box_shift",
    "box_margin",
    "crop_pixels",
    "min_pixels",
    "max_pixels",
    "skip_confidence",
    "dtype",
)
HOST_ZONE = timezone(timedelta(hours=8))  # of the dates that lmms-eval writes, wherever it runs: Singapore's


@dataclass(frozen=True)
class Report:
    """Where a report was written, and how much of it there is. images: how many samples have theirs.
    missing: what each run lacks."""

    folder: Path
    samples: int
    images: int
    missing: tuple[str, ...] = ()

    def text(self) -> str:
        """Where to look, and what is missing of each run."""
        where = f"{self.folder / 'report.html'}: {self.samples:,} samples, {self.images:,} with image."
        return "\n".join([where, *self.missing])


@dataclass(frozen=True)
class Shown:
    """A run as its report shows it.

    samples: see `tables`, with run and outcome. questions: how many each task has.
    """

    name: str
    run: Run
    outcomes: dict[str, Outcomes]
    samples: pd.DataFrame
    questions: dict[str, int]


def report(
    folders: Sequence[str | Path],
    out: str | Path,
    images: int = 400,
    traces: str | Path | None = None,
) -> Report:
    """Write the report of runs: report.html, report.md, a CSV file for each table and samples.csv, each named
    after its run where there are several.

    folders: see `runs.load_run`. images: of so many samples at most. traces: of a single run, where they
    are not found by themselves. UserError when a run has no traces, or its questions are not there.
    """
    if traces is not None and len(folders) > 1:
        raise UserError(f"--traces goes with one run, {len(folders)} are given: report them one by one.")
    if images < 0:
        raise UserError(f"--pictures is a number of samples, 0 or more, got {images}.")
    folder = writable(out, "--out")
    runs = [load_run(path, traces, lambda settings: TraceColumns(), replays=True) for path in folders]
    shown = [_shown(run, name) for run, name in zip(runs, _names(folders, runs), strict=True)]
    compared, curve = _comparison(shown)
    total = sum(len(one.samples) for one in shown)
    rows, kept = gallery.collect(_listed(shown), images, _openers(shown))
    title = " · ".join(one.name for one in shown)
    pages = [_run_page(one) for one in shown]
    left_out = notices.of_samples(total, rows, kept, images)
    text = page.render(title, pages, compared, rows, kept, left_out, curve)
    try:
        atomic_write(folder / "report.html", text)
        report_files.write_tables(folder, pages, compared, [one.samples for one in shown], curve)
        atomic_write(folder / "report.md", report_files.report_markdown(title, pages, compared, curve))
    except OSError as error:
        raise UserError(
            f"Cannot write the report to {folder}: {error}. Give another folder with --out."
        ) from error
    missing = tuple(
        f"{one.name}: {notice}" for one in shown for notice in notices.incomplete(one.run, one.questions)
    )
    return Report(folder, total, sum(place >= 0 for place in rows["photo"]), missing)


# --- runs --------------------------------------------------------------------------------------------------


def _names(folders: Sequence[str | Path], runs: Sequence[Run]) -> list[str]:
    """The folders' own names; where two are the same, as they were given; UserError for one given twice."""
    paths = [Path(path).resolve() for path in folders]
    if len(set(paths)) < len(paths):
        raise UserError(f"A run is given twice among {', '.join(map(str, folders))}: give each once.")
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(path) for path in folders]


def _shown(run: Run, name: str) -> Shown:
    found = {task: outcomes(one) for task, one in run.tasks.items() if one.traces}
    if not found:
        lost = f" that can be read ({run.damaged[0]})" if run.damaged else ""
        raise UserError(
            f"The run {name} has no traces{lost}: run it with --model_args trace=FOLDER, or name their "
            "folder with --traces."
        )
    parts = [_samples(one) for one in found.values()]
    samples = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    samples = samples.assign(run=name, outcome=gallery.outcome_names(samples))
    questions = {task: len(one.loaded.eval_docs_no_media) for task, one in found.items()}
    return Shown(name, run, found, samples, questions)


def _samples(outcome: Outcomes) -> pd.DataFrame:
    frame = outcome.table.assign(task=outcome.task, dimension=kinds(outcome.docs))
    return pd.concat([frame, outcome.costs], axis=1)


def _listed(shown: Sequence[Shown]) -> pd.DataFrame:
    """The samples that are on the page, each with its trace and its annotated box."""
    every = pd.concat([one.samples[["run", "task", "outcome"]] for one in shown], ignore_index=True)
    chosen = np.sort(gallery.choose(every, gallery.MOST_ROWS))
    parts, start = [], 0
    for one in shown:
        first = start
        for task, outcome in one.outcomes.items():
            end = start + len(outcome.table)
            places = chosen[(start <= chosen) & (chosen < end)]
            some = one.samples.iloc[places - first]
            traces = list(one.run.tasks[task].traces.at(places - start))
            boxes = outcome.annotated_boxes(places - start)
            columns = {"trace": traces, "annotated_box": boxes}
            parts.append(
                some.assign(
                    **{name: pd.Series(values, some.index, dtype=object) for name, values in columns.items()}
                )
            )
            start = end
    return pd.concat(parts, ignore_index=True)


def kinds(docs: Dataset | Sequence[dict[str, Any]]) -> pd.Series:
    """The kind of each question, by the first column of KINDS with at most MOST_KINDS values; else None."""
    for name in KINDS:
        values = _few(doc.get(name) for doc in docs) if isinstance(docs, Sequence) else _few_of(docs, name)
        if values is not None:
            return pd.Series(values, dtype=object)
    return pd.Series([None] * len(docs), dtype=object)


def _few_of(docs: Dataset, name: str) -> list[str] | None:
    if name not in docs.column_names:
        return None
    return _few(doc[name] for doc in each_doc(docs.select_columns([name])))


def _few(values: Iterable[Any]) -> list[str] | None:
    """The values, where all are texts and MOST_KINDS of them differ at most."""
    known: dict[str, str] = {}
    found = []
    for value in values:
        if not isinstance(value, str) or not value:
            return None
        found.append(known.setdefault(value, value))
        if len(known) > MOST_KINDS:
            return None
    return found


def _openers(shown: Sequence[Shown]) -> dict[tuple[str, str], gallery.Open]:
    return {
        (one.name, task): partial(_image, outcome.loaded)
        for one in shown
        for task, outcome in one.outcomes.items()
    }


def _image(task: ConfigurableTask, doc_id: int) -> Image.Image:
    """The image that a task asks about, as it gives it to a model."""
    set_up_pillow()
    return open_image(task.doc_to_visual(task.eval_docs[doc_id])[0])


# --- their descriptions -------------------------------------------------------------------------------------


def _comparison(shown: Sequence[Shown]) -> tuple[list[Table], str | None]:
    """The tables of several runs, and the plot of their accuracy against tokens where there is one."""
    if len(shown) == 1:
        return [], None
    samples = {one.name: one.samples for one in shown}
    settings = {one.name: _settings(one.run) for one in shown}
    found = [comparison.by_run(samples, settings)]
    if any(one.samples["task"].nunique() > 1 for one in shown):
        found += [comparison.by_task(samples), comparison.differences(samples)]
    spent = budgets.by_budget(samples, settings)
    return [*found, *([spent] if len(spent.frame) else [])], plots.tokens(spent.frame)


def _settings(run: Run) -> dict[str, Any]:
    """What decides answers, without the versions of libraries."""
    return {name: run.settings[name] for name in (*FACTS, "pathway", "count_eos") if name in run.settings}


def _run_page(shown: Shown) -> page.RunPage:
    settings = _settings(shown.run)
    facts = [(name, str(settings[name])) for name in FACTS if settings.get(name) is not None]
    return page.RunPage(
        name=shown.name,
        facts=facts,
        tiles=_tiles(
            _without_texts(shown.samples),
            "macro answer of the second run" if shown.run.second else "zoomed region",
        ),
        sections=_sections(shown),
        notices=[*notices.replayed(shown.run), *notices.incomplete(shown.run, shown.questions)],
        date=_date(shown.run.results),
    )


def _without_texts(samples: pd.DataFrame) -> pd.DataFrame:
    """What figures are made of: of parts of it there are copies."""
    return samples.drop(columns=["question", "answers", "text_macro", "text_micro"])


def _date(results: Mapping[str, Any] | None) -> datetime | None:
    """When the host wrote its results; None where they do not say it."""
    try:
        return datetime.strptime(str((results or {}).get("date")), "%Y%m%d_%H%M%S").replace(tzinfo=HOST_ZONE)
    except ValueError:
        return None


def _tiles(samples: pd.DataFrame, micro: str) -> list[page.Tile]:
    """micro: what the micro answers are."""
    row = tables.ablation(samples).frame.iloc[-1]
    interval = f"95%: {row['gain, low']:+.2f} to {row['gain, high']:+.2f}"
    looked = samples["micro"].notna()
    chosen = 100 * (samples["pathway"] == "micro").mean()
    tiles = [
        page.Tile("selected", f"{row['selected']:.2f}", f"{row['gain']:+.2f} over macro ({interval})"),
        page.Tile("macro", f"{row['macro']:.2f}", "whole image", "macro"),
        page.Tile("micro", f"{row['micro']:.2f}", micro, "micro"),
        page.Tile("oracle", f"{row['oracle']:.2f}", "always the better of both"),
        page.Tile("second looks", f"{100 * looked.mean():.1f}%", f"micro chosen in {chosen:.1f}%"),
    ]
    costs = tables.stages(samples).frame.iloc[-1]
    if costs["time against macro"] == costs["time against macro"]:
        tiles.append(
            page.Tile(
                "time",
                f"{costs['time against macro']:.2f}x",
                f"of macro alone, {costs['tokens against macro']:.2f}x the tokens",
            )
        )
    return tiles


def _sections(shown: Shown) -> list[page.Section]:
    samples, fitted = _without_texts(shown.samples), shown.run.settings.get("calibration")
    found = [
        page.Section(
            "pathways",
            "Pathways",
            [tables.ablation(samples), right.right_answers(samples), tables.metrics(shown.outcomes)],
        ),
        page.Section(
            "adaptive",
            "Adaptive inference",
            [tables.adaptive(samples)],
            plots.adaptive(samples),
            "Dashed: macro alone. Each point is a threshold of skip_confidence.",
        ),
        page.Section(
            "perplexity",
            "Perplexity",
            [tables.perplexities(samples)],
            plots.perplexities(samples),
            "Answers of a pathway by perplexity. The highest hundredth stands in the last bin.",
        ),
        page.Section(
            "reliability",
            "Confidence",
            [confidence.reliability(samples)],
            plots.reliability(samples),
            "Dashed: calibrated, as many right answers as the confidence says. Larger points: more answers.",
        ),
        page.Section(
            "bias",
            "Threshold b",
            [confidence.by_b(samples, fitted)],
            plots.by_b(samples, confidence.own_b(fitted)),
        ),
        page.Section("kinds", "Kinds of questions", [tables.dimensions(samples)], plots.kinds(samples)),
        page.Section("cost", "Cost", [tables.stages(samples)]),
        page.Section(
            "boxes",
            "Boxes",
            [
                tables.fallbacks(samples),
                box_tables.located(samples),
                box_tables.boxes(samples),
                box_tables.overlaps(samples),
                box_tables.by_coverage(samples),
            ],
            plots.areas(samples),
        ),
    ]
    filled = [
        page.Section(one.name, one.title, [t for t in one.tables if len(t.frame)], one.plot, one.caption)
        for one in found
    ]
    return [one for one in filled if one.tables and not (one.name == "boxes" and shown.run.second)]
