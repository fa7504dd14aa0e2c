"""The report's page of many samples of two runs, without a model and without a run on disk."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dualfocus_lmms import Answer, Selection, Trace
from dualfocus_lmms.images import image_hash
from dualfocus_lmms.results.report import box_tables, comparison, gallery, page, plots, tables
from dualfocus_lmms.results.trace_columns import COSTS, costs_of
from dualfocus_lmms.text_output import script_json
from dualfocus_lmms.types import Usage

SAMPLES = 5000
EVIL = "</script><img src=https://example.org/x onerror=alert(1)> & <b>bold</b>"
RUNS, TASKS = ("first", "second"), ("df_a", "df_b")


def drawn(doc_id: int) -> Image.Image:
    return Image.new("RGB", (640, 480), (40, 90, doc_id % 256))


def make_samples() -> pd.DataFrame:
    """SAMPLES of two runs and two tasks; the outcomes of each come in turn, a seventh has no second look."""
    usage = Usage(tokens=12, encodes=1, seconds=0.5)
    answer = Answer("macro", "yes", (7,), (-0.1, -2.0), True, usage)
    logprobs, lengths = (-0.2, -0.7, -0.5, -0.6, -3.0, -0.001), (3, 4, 0, 0, 1)
    divided = Answer("macro", "yes sir🐱", (7, 8, 240, 159, 9), logprobs, True, usage, lengths)
    hashes = [image_hash(drawn(number)) for number in range(256)]
    combinations = list(gallery.OUTCOMES)
    rows = []
    for number in range(SAMPLES):
        turn, doc_id = number % 7, number % (SAMPLES // 2)
        macro, micro, selected = combinations[turn] if turn < 6 else (True, False, True)
        chosen = "micro" if turn < 6 and selected == micro and macro != micro else "macro"
        trace = Trace(
            key={},
            question_id="",
            prompts={"macro": f"{EVIL}\nA. yes\nB. no"},
            image_size=(640, 480),
            image_hash=hashes[doc_id % 256],
            selection=Selection(chosen, "x", "ppl", turn - 3 if turn < 6 else None),  # type: ignore[arg-type]
            macro=divided if number >= SAMPLES // 2 else answer,
            box=(0.25, 0.25, 0.5, 0.75) if turn < 6 else None,
            crop=(160, 120, 320, 360) if turn < 6 else None,
            fallback=None if turn < 6 else "no_box",
        )
        rows.append(
            {
                "run": RUNS[number // (SAMPLES // 2)],
                "task": TASKS[number // (SAMPLES // 4) % 2],
                "doc_id": doc_id,
                "question_key": str(doc_id),
                "trace": trace,
                "question": EVIL if number == 0 else f"What is number {number}?",
                "answers": "A",
                "text_macro": "" if number == 1 else trace.macro.text,
                "text_micro": "no" if turn < 6 else None,
                "macro": 100.0 * macro,
                "micro": 100.0 * micro if turn < 6 else np.nan,
                "selected": 100.0 * selected,
                "oracle": 100.0 * (macro or micro),
                "ppl_macro": 1.1 + turn / 10,
                "ppl_micro": 1.4 if turn < 6 else np.nan,
                "pathway": chosen,
                "fallback": trace.fallback,
                "iou": 0.5,
                "annotated_box": [0.2, 0.2, 0.5, 0.7],
                "dimension": None,
            }
            | dict(zip(COSTS, costs_of(trace), strict=True))
        )
    frame = pd.DataFrame(rows)
    for way in ("macro", "micro"):
        frame[f"nll_{way}"] = np.log(frame[f"ppl_{way}"])
    return frame.assign(confidence_macro=1 / frame["ppl_macro"], outcome=gallery.outcome_names(frame))


def write_page(path: Path) -> Path:
    """The file that the page is in."""
    samples = make_samples()
    rows, images = gallery.collect(samples, 60, {(run, task): drawn for run in RUNS for task in TASKS})
    pages = [
        page.RunPage(
            name=name,
            facts=[("pretrained", EVIL)],
            tiles=[page.Tile("macro", "50.00", "whole image", "macro")],
            sections=[
                page.Section("pathways", "Pathways", [tables.ablation(some)]),
                page.Section(
                    "perplexity", "Perplexity", [tables.perplexities(some)], plots.perplexities(some)
                ),
                page.Section(
                    "boxes", "Boxes", [tables.fallbacks(some), box_tables.boxes(some)], plots.areas(some)
                ),
            ],
            notices=["12 of 24 samples are here."],
            date=datetime(2026, 7, 27, 15, 28, tzinfo=timezone.utc),
        )
        for name, some in samples.groupby("run")
    ]
    runs = {str(name): some for name, some in samples.groupby("run")}
    compared = [comparison.by_run(runs, {name: {} for name in runs})]
    path.write_text(page.render("A report", pages, compared, rows, images, ["few images"]), encoding="utf-8")
    return path


def with_each_sample(times: int, html: str) -> str:
    """The page with each sample listed so often."""
    start, end = '<script type="application/json" id="rows-data">', "</script>"
    before, _, rest = html.partition(start)
    text, _, after = rest.partition(end)
    columns = json.loads(text)
    more = {
        name: column * times
        for name, column in columns.items()
        if isinstance(column, list) and len(column) == SAMPLES
    }
    return f"{before}{start}{script_json(columns | more)}{end}{after}"
