"""How well a model in memory answers held-out samples, on both pathways. Knows nothing about training.

The model is asked by the engine and the flow of inference; nothing is written, loaded or copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.flow import answer_batch
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.train.data.conversations import question_of
from dualfocus_lmms.train.data.samples import TrainingSample
from dualfocus_lmms.types import Backend, StopCriteria


@dataclass(frozen=True, slots=True)
class Scored:
    """One sample's outcome. iou: of the box that was written with the true one; 0 for none that can be read;
    None where the sample has no box. macro, micro, selected: whether the answer is right; a micro answer that
    was never given is not."""

    iou: float | None
    macro: bool
    micro: bool
    selected: bool


def evaluate(
    backend: Backend,
    samples: Sequence[TrainingSample],
    settings: Settings,
    instruction: str,
    batch_size: int = 8,
    max_new_tokens: int = 16,
) -> list[Scored]:
    """One outcome for each sample, in order. instruction: see `conversations.from_sample`."""
    scored: list[Scored] = []
    for start in range(0, len(samples), batch_size):
        batch = [samples[number] for number in range(start, min(start + batch_size, len(samples)))]
        questions = [question_of(sample, instruction) for sample in batch]
        traces = answer_batch(backend, questions, [StopCriteria(max_new_tokens)] * len(batch), settings)
        scored += [score(trace, sample) for trace, sample in zip(traces, batch, strict=True)]
    return scored


def score(trace: Trace, sample: TrainingSample) -> Scored:
    """What a trace says about a sample."""
    iou = None
    if sample.box is not None:
        iou = 0.0 if trace.box is None else Box(*trace.box).clip().iou(sample.box)
    return Scored(
        iou=iou,
        macro=same_answer(trace.macro.text, sample.answer),
        micro=trace.micro is not None and same_answer(trace.micro.text, sample.answer),
        selected=same_answer(trace.selection.text, sample.answer),
    )


def same_answer(given: str, true: str) -> bool:
    """Whether two answers are the same but for case, blanks and a closing full stop."""
    return _plain(given) == _plain(true)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().removesuffix(".").casefold()


def summary(scored: Iterable[Scored]) -> dict[str, float]:
    """Shares from 0 to 1, and the mean IoU: `box_iou` and `box_half` (IoU above 0.5) over samples with a box,
    the accuracies over all. A figure without a sample is left out."""
    outcomes = list(scored)
    ious = [outcome.iou for outcome in outcomes if outcome.iou is not None]
    figures: dict[str, list[float]] = {
        "box_iou": ious,
        "box_half": [float(iou > 0.5) for iou in ious],
        "macro": [float(outcome.macro) for outcome in outcomes],
        "micro": [float(outcome.micro) for outcome in outcomes],
        "selected": [float(outcome.selected) for outcome in outcomes],
    }
    return {name: sum(values) / len(values) for name, values in figures.items() if values}
