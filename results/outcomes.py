"""What every answer of a run is worth, pathway by pathway, scored with the task's own code.

table = outcomes(load_run(Path("results/first")).tasks["df_nano_detail"]).table
print(table[["macro", "micro", "selected", "oracle"]].mean())

No model and no image is needed, but the task's questions are: the host's files hold answers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import FINGERPRINT, questions_fingerprint
from dualfocus_lmms.results.runs import SampleRun, TaskRun
from dualfocus_lmms.tasks.common.score import Metric, aggregate, load_task

if TYPE_CHECKING:
    from lmms_eval.api.task import ConfigurableTask

Doc = dict[str, Any]
Pathway = Literal["macro", "micro", "selected", "oracle"]

ACCURACY = "accuracy"


@dataclass(frozen=True)
class Outcomes:
    """A task's answers and what they are worth.

    metric: the one that scores an answer, see `main_metric`. loaded: the task, with the host's own scoring.
    docs: the documents, in the order of the table.

    table: one row a sample, by doc_id. macro, micro, selected, oracle: the score of each pathway's answer, of
    the one that was chosen, and of the better one, 0 to 100; micro is nan where there was no second look, and
    oracle is macro's then. ppl_*, nll_* (nats per token), confidence_macro (1/PPL). pathway: the chosen one.
    fallback: why there is no micro answer, else None. question_key: the same for all samples of one question,
    which is asked with its options in several orders; else the doc_id. annotated: whether the document has a
    box. iou: of the located and the annotated box, nan without either. question, answers, text_macro,
    text_micro (None where there is none).
    """

    task: str
    metric: str
    loaded: ConfigurableTask
    docs: Sequence[Doc]
    table: pd.DataFrame

    @cached_property
    def _macro_is_oracle(self) -> pd.Series:
        return ~(self.table["micro"] > self.table["macro"])

    def texts(self, pathway: Pathway) -> list[str]:
        """The answer to each question; where there is no micro answer, the macro one stands for it."""
        macro, micro = self.table["text_macro"], self.table["text_micro"]
        is_macro = {
            "macro": macro.notna(),
            "micro": micro.isna(),
            "selected": self.table["pathway"] == "macro",
            "oracle": self._macro_is_oracle,
        }[pathway]
        return macro.where(is_macro, micro).tolist()

    def aggregates(self, pathway: Pathway) -> tuple[Metric, ...]:
        """All of the task's metrics for the answers of `texts`, aggregated by the host as in a run."""
        return tuple(aggregate(self.task, self.loaded, self.docs, self.texts(pathway)))


def outcomes(task_run: TaskRun) -> Outcomes:
    """The outcomes of a task's samples. UserError when its questions cannot be found, or are others now."""
    loaded = load_task(task_run.task, task_run.include_path)
    task_run, loaded = _looked_up(task_run, loaded)
    docs = [sample.doc for sample in task_run.samples if sample.doc is not None]  # all of them
    metric = main_metric(task_run.task, loaded)
    table = pd.DataFrame({**_from_traces(task_run.samples), **_from_docs(loaded, task_run.samples, docs)})
    table["question_key"] = question_keys(loaded, metric, docs, table["text_macro"], table["doc_id"])
    table["macro"] = _scores(loaded, metric, docs, table["text_macro"])
    table["micro"] = _scores(loaded, metric, docs, table["text_micro"], table["text_macro"], table["macro"])
    table["selected"] = table["macro"].where(table["pathway"] == "macro", table["micro"])
    table["oracle"] = table[["macro", "micro"]].max(axis=1)
    return Outcomes(task_run.task, metric, loaded, docs, table)


# --- the documents -----------------------------------------------------------------------------------------


def _looked_up(task_run: TaskRun, loaded: ConfigurableTask) -> tuple[TaskRun, ConfigurableTask]:
    """The run with the document of every sample, and the task that they are from.

    doc_id counts the questions that were available when the run began: all of them, or those with an image.
    `loaded` has all.
    """
    if all(sample.doc is not None for sample in task_run.samples):
        return task_run, loaded
    docs = loaded.eval_docs_no_media
    if not _fits(task_run, loaded, docs):
        loaded = load_task(task_run.task, task_run.include_path, images=True)
        docs = loaded.eval_docs_no_media
        if not _fits(task_run, loaded, docs):
            raise UserError(
                f"The run asked other questions of {task_run.task} than the {len(docs)} that are here now "
                f"(fingerprint {questions_fingerprint(docs)}, the run's {task_run.data.get(FINGERPRINT)}). "
                "Set DUALFOCUS_DATA, or DUALFOCUS_LOCAL, to the files of the run."
            )
    rows = docs.select([sample.doc_id for sample in task_run.samples])
    samples = [replace(sample, doc=doc) for sample, doc in zip(task_run.samples, rows, strict=True)]
    return replace(task_run, samples=samples), loaded


def _fits(task_run: TaskRun, loaded: ConfigurableTask, docs: Any) -> bool:
    """Whether these are the questions of the run: by fingerprint, or where a run was killed before it wrote
    one, by the prompts of its samples."""
    if any(sample.doc_id >= len(docs) for sample in task_run.samples):
        return False
    if FINGERPRINT in task_run.data:
        return questions_fingerprint(docs) == task_run.data[FINGERPRINT]
    return all(
        loaded.doc_to_text(docs[sample.doc_id]).strip() == sample.trace.prompts.get("macro", "").strip()
        for sample in task_run.samples
    )


def _from_docs(loaded: ConfigurableTask, samples: Sequence[SampleRun], docs: Sequence[Doc]) -> dict[str, Any]:
    columns = (loaded.config.metadata or {}).get("dualfocus") or {}
    question, box = columns.get("question"), columns.get("box")
    prompts = [sample.trace.prompts.get("macro", "") for sample in samples]
    boxes = [None if box is None else doc[box] for doc in docs]
    return {
        "question": prompts if question is None else [doc[question] for doc in docs],
        "answers": [loaded.doc_to_target(doc) for doc in docs],
        "annotated": [one is not None for one in boxes],
        "iou": _ious([sample.trace.box for sample in samples], boxes),
    }


def _ious(located: Sequence[Any], annotated: Sequence[Any]) -> np.ndarray:
    """(n,) intersection over union of boxes (x0, y0, x1, y1) or None; nan without either, 0 where both are
    empty. What lies outside the image does not count."""
    nothing = (np.nan,) * 4
    one, other = (
        np.array([nothing if box is None else tuple(box) for box in boxes], dtype=float).reshape(-1, 4)
        for boxes in (located, annotated)
    )
    one, other = one.clip(0, 1), other.clip(0, 1)
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = sides.clip(min=0).prod(axis=1)
    union = sum((box[:, 2:] - box[:, :2]).prod(axis=1) for box in (one, other)) - shared
    return np.divide(shared, union, out=np.where(np.isnan(shared), np.nan, 0.0), where=union > 0)


# --- the answers -------------------------------------------------------------------------------------------


def _from_traces(samples: Sequence[SampleRun]) -> dict[str, Any]:
    traces = [sample.trace for sample in samples]
    ppl = {
        name: np.array([trace.ppl.get(name, np.nan) for trace in traces], dtype=float)
        for name in ("macro", "micro")
    }
    return {
        "doc_id": [sample.doc_id for sample in samples],
        "pathway": [trace.selection.pathway for trace in traces],
        "fallback": pd.Series([trace.fallback for trace in traces], dtype=object),
        "text_macro": pd.Series([trace.macro.text for trace in traces], dtype=object),
        "text_micro": pd.Series(
            [None if trace.micro is None else trace.micro.text for trace in traces], dtype=object
        ),
        **{f"ppl_{name}": values for name, values in ppl.items()},
        **{f"nll_{name}": np.log(values) for name, values in ppl.items()},
        "confidence_macro": 1 / ppl["macro"],
    }


def _scores(
    loaded: ConfigurableTask,
    metric: str,
    docs: Sequence[Doc],
    texts: Sequence[str | None],
    known: Sequence[str] = (),
    scores: Sequence[float] = (),
) -> list[float]:
    """The score of each text, nan for None. One that equals its `known` text has the score of that."""
    given: Iterator[tuple[str | None, float]] = iter(zip(known, scores, strict=True))
    found = []
    for doc, text in zip(docs, texts, strict=True):
        same, score = next(given, (None, np.nan))
        if text is None:
            found.append(np.nan)
        elif text == same:
            found.append(score)
        else:
            found.append(_score(loaded.process_results(doc, [text])[metric]))
    return found


def question_keys(
    loaded: ConfigurableTask, metric: str, docs: Sequence[Doc], texts: Sequence[str], doc_ids: Sequence[int]
) -> list[str]:
    """The question of each sample, by the key `question` in what the task's metric says of its answer, with
    which it tells questions apart itself; without one the doc_id."""

    values = (loaded.process_results(doc, [text])[metric] for doc, text in zip(docs, texts, strict=True))
    first = next(values, None)
    if not isinstance(first, Mapping) or "question" not in first:  # a metric's values have one form
        return [str(doc_id) for doc_id in doc_ids]
    return [str(value["question"]) for value in (first, *values)]


def _score(value: Any) -> float:
    score = number(value)
    if score is None:
        raise UserError(
            f"A metric gives {value!r} for one answer: a task whose answers are to be compared one by one "
            "has to give a number first, or a mapping with 'score' or 'right'."
        )
    return score


def main_metric(task: str, loaded: ConfigurableTask) -> str:
    """The metric of an answer's quality: the task's accuracy, or where it has none, its first."""
    names = list(loaded.aggregation())
    if not names:
        raise UserError(f"{task} names no metric: its answers cannot be scored one by one.")
    return ACCURACY if ACCURACY in names else names[0]


def number(value: Any) -> float | None:
    """A task's metric of one answer, as a number, 0 to 100; None where it gives none.

    It may be wrapped in what the metric's aggregation needs besides: {"score": 50.0, ...}, {"right": True,
    ...}.
    """
    if isinstance(value, Mapping) and "score" in value:
        value = value["score"]
    elif isinstance(value, Mapping) and "right" in value:
        value = 100.0 if value["right"] else 0.0
    return float(value) if isinstance(value, (int, float)) else None
