"""Samples for the page: a row each, and small images of some of them. Knows no HTML."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.images import UNREADABLE, image_hash, rgb
from dualfocus_lmms.replay import SECOND
from dualfocus_lmms.results.report.sample_details import box_of, detail, seconds
from dualfocus_lmms.results.report.tables import RIGHT, micro_scores
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.visualize import WHY, crops_of, heat_of

# By which of the macro, the micro and the selected answer are right. Where there is no second look, the macro
# answer stands for micro.
OUTCOMES = {
    (True, True, True): "both right",
    (False, True, True): "rescued",
    (True, False, True): "kept",
    (True, False, False): "spoiled",
    (False, True, False): "missed",
    (False, False, False): "both wrong",
}
MEANING = {
    "both right": "both answers are right",
    "rescued": "only micro is right, and it was chosen",
    "kept": "only macro is right, and it was chosen",
    "spoiled": "only macro is right, and micro was chosen",
    "missed": "only micro is right, and macro was chosen",
    "both wrong": "both answers are wrong",
}
MOST_ROWS = 20_000  # samples on a page
MOST_BYTES = 17_000_000  # of photos and crops, as they stand in the page; attention maps come on top
PHOTO, CROP, HEAT = 480, 256, 96  # the longer side of an image, in pixels
LONGEST_TEXT = 400  # characters of a question or an answer
MOST_DETAILS = 400  # samples with prompts and tokens, where more have no image

Open = Callable[[int], Image.Image]  # the image of a task's sample, by doc_id


def outcome_names(samples: pd.DataFrame) -> NDArray[Any]:
    """(n,): the outcome of each sample, one of OUTCOMES."""
    right = [samples["macro"] >= RIGHT, micro_scores(samples) >= RIGHT, samples["selected"] >= RIGHT]
    # A rule of a plugin may choose only between the two: no other combination exists.
    names = np.full((2, 2, 2), None, dtype=object)
    for combination, name in OUTCOMES.items():
        names[tuple(map(int, combination))] = name
    return names[tuple(one.to_numpy(dtype=int) for one in right)]


def choose(samples: pd.DataFrame, number: int) -> NDArray[np.int64]:
    """Places of at most `number` samples, evenly from each run, task and outcome, drawn with a fixed seed."""
    shuffled = samples[["run", "task", "outcome"]].reset_index(drop=True).sample(frac=1, random_state=0)
    turn = shuffled.groupby(["run", "task", "outcome"]).cumcount()
    return shuffled.index.to_numpy()[np.argsort(turn.to_numpy(), kind="stable")[:number]]


@dataclass
class PageImages:
    """Small JPEG images as data URIs, each image once. problems: why others are missing, counted."""

    photos: list[str] = field(default_factory=list)
    crops: list[str] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)
    size: int = 0
    _known: dict[str, int] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return self.size >= MOST_BYTES

    def add(self, trace: Trace, doc_id: int, open_image: Open) -> tuple[int, int]:
        """(image, crop): places in the lists, -1 where there is none."""
        try:
            image = open_image(doc_id)
        except (UserError, *UNREADABLE) as error:
            return self._problem(str(error))
        if image_hash(image) != trace.image_hash:
            return self._problem("The image is not the one that the run saw.")
        if trace.image_hash not in self._known:
            self._known[trace.image_hash] = self._put(self.photos, image, PHOTO)
        crop = -1 if not trace.shown else self._put(self.crops, crops_of(image, trace), CROP)
        return self._known[trace.image_hash], crop

    def _put(self, images: list[str], image: Image.Image, side: int) -> int:
        images.append(data_uri(image, side))
        self.size += len(images[-1])
        return len(images) - 1

    def _problem(self, text: str) -> tuple[int, int]:
        self.problems[text] = self.problems.get(text, 0) + 1
        return -1, -1


def data_uri(image: Image.Image, side: int) -> str:
    """A JPEG whose longer side has `side` pixels at most; small images are enlarged by a whole number, so
    that their pixels stay square."""
    scale = side / max(image.size)
    if scale > 1:
        scale = max(1, math.floor(scale))
    size = [max(1, round(length * scale)) for length in image.size]
    resampling = Image.Resampling.NEAREST if scale >= 8 else Image.Resampling.LANCZOS
    with io.BytesIO() as file:
        rgb(image).resize((size[0], size[1]), resampling).save(file, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def collect(
    samples: pd.DataFrame, number: int, openers: Mapping[tuple[str, str], Open]
) -> tuple[dict[str, Any], PageImages]:
    """(rows, images) of samples with the columns run, task, outcome and trace.

    rows: columns as lists, one entry a sample; and `details` of those samples that have an image, or of all
    where there are few. More than MOST_ROWS samples are thinned out evenly, as those
    with images are chosen. openers: by run and task.
    """
    samples = samples.iloc[np.sort(choose(samples, MOST_ROWS))].reset_index(drop=True)
    places: dict[int, tuple[int, int]] = {}
    images = PageImages()
    chosen = choose(samples, number)
    for place in tqdm(_in_turns(chosen.tolist()), desc="Images", disable=None):
        if images.full:
            break
        sample = samples.loc[place]
        open_image = openers[sample["run"], sample["task"]]
        places[place] = images.add(sample["trace"], sample["doc_id"], open_image)
    found = [places.get(place, (-1, -1)) for place in range(len(samples))]
    whole = range(len(samples)) if len(samples) <= MOST_DETAILS else sorted(places)
    order = {place: number for number, place in enumerate(whole)}
    return _columns(samples) | {
        "photo": [one for one, _ in found],
        "cropped": [two for _, two in found],
        "detail": [order.get(place, -1) for place in range(len(samples))],
        "details": [_detail(samples.at[place, "trace"]) for place in whole],
    }, images


def _detail(trace: Trace) -> dict[str, Any]:
    """`detail`, with the attention that the region was chosen from as `heat` where the trace keeps it."""
    scale = HEAT / max(*trace.image_size, 1)
    width, height = (max(round(side * scale), 1) for side in trace.image_size)
    heat = heat_of(trace, (width, height))
    return detail(trace) | ({} if heat is None else {"heat": data_uri(heat, HEAT)})


def _in_turns(places: Sequence[int], at_once: int = 100) -> list[int]:
    """The same places, each hundred of them in the order of the samples: tasks keep the last images."""
    return [
        int(place)
        for start in range(0, len(places), at_once)
        for place in sorted(places[start : start + at_once])
    ]


def _columns(samples: pd.DataFrame) -> dict[str, Any]:
    traces: list[Trace] = samples["trace"].tolist()
    runs, tasks = (list(samples[name].unique()) for name in ("run", "task"))
    names = list(OUTCOMES.values())
    return {
        "runs": runs,
        "tasks": tasks,
        "outcomes": [[name, MEANING[name]] for name in names],
        "why": WHY,
        "right": RIGHT,
        "run": [runs.index(name) for name in samples["run"]],
        "ensembles": sorted(
            {
                place
                for place, trace in zip(samples["run"].map(runs.index), traces, strict=True)
                if SECOND in trace.prompts
            }
        ),
        "task": [tasks.index(name) for name in samples["task"]],
        "outcome": [names.index(name) for name in samples["outcome"]],
        "id": samples["doc_id"].tolist(),
        "question": _texts(samples["question"]),
        "answers": _texts(map(expected, samples["answers"])),
        "macro": _texts(samples["text_macro"]),
        "micro": [_short(text) if isinstance(text, str) else None for text in samples["text_micro"]],
        "score": [_numbers(row, 1) for row in samples[["macro", "micro"]].to_numpy()],
        "ppl": [_numbers(row, 4) for row in samples[["ppl_macro", "ppl_micro"]].to_numpy()],
        "chosen": [int(pathway == "micro") for pathway in samples["pathway"]],
        "size": [list(trace.image_size) for trace in traces],
        "box": [None if trace.box is None else _numbers(trace.box, 4) for trace in traces],
        "crops": [[list(crop) for crop in trace.shown] for trace in traces],
        "fallback": [trace.fallback for trace in traces],
        "iou": _numbers(samples["iou"], 3),
        "margin": _numbers((_or_nan(trace.selection.margin) for trace in traces), 4),
        "seconds": _numbers(map(seconds, traces), 4),
        "annotated": [box_of(box) for box in samples.get("annotated_box", [None] * len(samples))],
    }


def expected(target: Any) -> str:
    """What a task wants to hear, as one text; answers that people gave several times once."""
    if isinstance(target, (list, tuple)):
        return " / ".join(dict.fromkeys(str(one) for one in target))
    return str(target)


def _texts(values: Iterable[Any]) -> list[str]:
    return [_short(str(value)) for value in values]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _numbers(values: Iterable[float], digits: int) -> list[float | None]:
    """Numbers for JSON, which knows no nan and no infinity."""
    return [round(float(value), digits) if math.isfinite(value) else None for value in values]
