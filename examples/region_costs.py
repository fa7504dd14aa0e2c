"""What several regions and a second look show, gain and cost on drawn scenes, a question at a time.

python examples/region_costs.py --questions 40     # the table of docs/regions.md#what-one-question-costs

`dualfocus-nano` with the engine `tree`: coverage (the share of the things a question is about that the crops
show), accuracy, and for each question the tokens, encoded images and forwards of the whole flow.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import numpy as np
from tabulate import tabulate

from dualfocus_lmms import DualFocusModel, Question, Settings, StopCriteria, Trace, answer_batch
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.results.coverage import coverage
from dualfocus_lmms.scene_layouts import make_layout

# Layout of the scenes, kind of the questions (all where empty), settings.
RUNS: list[tuple[str, str, dict[str, Any]]] = [
    ("shapes", "detail", {}),
    ("shapes", "detail", {"grounding": "center"}),
    ("near", "", {"grounding": "annotated"}),
    ("near", "", {"grounding": "annotated", "regions": "separate"}),
    ("apart", "", {"grounding": "annotated"}),
    ("apart", "", {"grounding": "annotated", "regions": "separate"}),
    ("tiny", "", {}),
    ("tiny", "", {"looks": 2}),
]
COUNTED = ("tokens", "encodes", "forwards")


def questions(layout: str, kind: str) -> Iterator[tuple[Question, str]]:
    """Questions about test scenes of a layout, each with its answer, one of each scene."""
    for number in count():
        scene = make_layout(layout, "test", 0, number)
        asked = next(one for one in scene.questions if kind in ("", one.kind))
        boxes, text = tuple(thing.box for thing in asked.things), asked.question
        prompt = f"{text}\n{SHORT_ANSWER}"
        yield Question(scene.name, scene.image(), text, prompt, box=asked.box, boxes=boxes), asked.answer


def one_by_one(backend: Any, asked: list[Question], settings: Settings) -> tuple[list[Trace], list[float]]:
    """The traces of an engine, and what a question costs on average: the COUNTED."""
    before = [getattr(backend.counts, name) for name in COUNTED]
    traces = [answer_batch(backend, [one], [StopCriteria(8)], settings)[0] for one in asked]
    return traces, [
        (getattr(backend.counts, name) - first) / len(asked)
        for name, first in zip(COUNTED, before, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=40)
    number = parser.parse_args().questions
    backend = DualFocusModel("dualfocus-nano", device="cpu").backend
    rows = []
    for layout, kind, given in RUNS:
        asked = list(islice(questions(layout, kind), number))
        traces, costs = one_by_one(backend, [one for one, _ in asked], Settings.of(**given))
        correct = [
            [answer is not None and answer.text.strip() == true for answer in (trace.macro, trace.micro)]
            + [trace.selection.text.strip() == true]
            for trace, (_, true) in zip(traces, asked, strict=True)
        ]
        shown = [
            coverage(trace.shown, one.image.size, [box.xyxy for box in one.boxes])
            for trace, (one, _) in zip(traces, asked, strict=True)
        ]
        settings = ", ".join(f"{name}={value}" for name, value in given.items())
        means = [100 * float(np.mean(column)) for column in zip(*correct, strict=True)]
        scores = [f"{mean:.0f}" for mean in means]
        rows.append(
            [layout, settings, f"{100 * np.nanmean(shown):.0f}", *scores, *(f"{one:.1f}" for one in costs)]
        )
    headers = ["scenes", "settings", "coverage", "macro", "micro", "selected", *COUNTED]
    print(tabulate(rows, headers, "github"))


if __name__ == "__main__":
    main()
