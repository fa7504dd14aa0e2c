"""What every answer of a run is worth, pathway by pathway, scored with the task's own code.

table = outcomes(load_run(Path("results/first")).tasks["df_nano_detail"]).table
print(table[["macro", "micro", "selected", "oracle"]].mean())

No model and no image is needed, but the task's questions are: the host's files hold answers alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.integrity import FINGERPRINT, each_doc, questions_fingerprint
from dualfocus_lmms.results.coverage import annotated_regions, coverage
from dualfocus_lmms.results.runs import TaskRun
from dualfocus_lmms.results.trace_columns import BOX, COSTS, SIZE, TEXTS, Crops, TraceColumns
from dualfocus_lmms.tasks.common.score import Metric, aggregate, load_task, process_results
from dualfocus_lmms.trace_folder import Traces

if TYPE_CHECKING:
    from datasets import Dataset
    from lmms_eval.api.task import ConfigurableTask

Doc = dict[str, Any]
Pathway = Literal["macro", "micro", "selected", "oracle"]

ACCURACY = "accuracy"
_AT_ONCE = 1 << 14  # samples whose documents are in memory
_MOST_SHARED = 1 << 16  # answers that are looked for among those that came before


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
    box. iou: of the located and the annotated box, nan without either. coverage: the
    share of the annotated regions inside the crops, see `coverage`. question, answers, text_macro, text_micro
    (None where there is none).

    costs: the columns COSTS, a row for each of the table's: what each stage cost, in all looks together, nan
    where it did not run; the box's share of the image in percent and the crop's size in pixels, nan without
    one; the pixels of the image and of the crop as the model received them (of several crops together), nan
    where its encoder or its tiles have one size.
    """

    task: str
    metric: str
    loaded: ConfigurableTask
    docs: Dataset
    table: pd.DataFrame
    costs: pd.DataFrame

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

    def annotated_boxes(self, places: Sequence[int] | NDArray[np.int64]) -> list[Any]:
        """The box of the document in each of these rows, corners as fractions; None without one."""
        box = _columns(self.loaded).get("box")
        return [None] * len(places) if box is None else list(self.docs.select(np.asarray(places))[box])

    def aggregates(self, pathway: Pathway) -> tuple[Metric, ...]:
        """All of the task's metrics for the answers of `texts`, aggregated by the host as in a run."""
        return tuple(aggregate(self.task, self.loaded, self.docs, self.texts(pathway)))


def outcomes(task_run: TaskRun) -> Outcomes:
    """The outcomes of a task's samples. UserError when its questions cannot be found, or are others now."""
    loaded, questions = _questions(task_run)
    traces = task_run.traces
    docs = questions.select(traces.doc_ids)
    metric = main_metric(task_run.task, loaded)
    columns, rows = task_run.columns, traces.rows
    if columns is None:
        columns, rows = TraceColumns.of(traces), np.arange(len(traces))
    seen = columns.at(rows)
    scored = _scored(loaded, metric, traces, docs, seen, map(columns.shown, rows))
    costs = seen.loc[:, COSTS[0] : COSTS[-1]]  # next to each other: a view
    return Outcomes(task_run.task, metric, loaded, docs, _table(traces, seen, scored), costs)


# --- the documents -----------------------------------------------------------------------------------------


def _questions(task_run: TaskRun) -> tuple[ConfigurableTask, Dataset]:
    """The task and the questions that the run counts by doc_id: all of them, or those with an image."""
    for images in (False, True):
        loaded = load_task(task_run.task, task_run.include_path, images=images)
        docs = loaded.eval_docs_no_media
        if _fits(task_run, loaded, docs):
            return loaded, docs
    raise UserError(
        f"The run asked other questions of {task_run.task} than the {len(docs)} that are here now "
        f"(fingerprint {questions_fingerprint(docs)}, the run's {task_run.data.get(FINGERPRINT)}). "
        "Set DUALFOCUS_DATA, or DUALFOCUS_LOCAL, to the files of the run."
    )


def _fits(task_run: TaskRun, loaded: ConfigurableTask, docs: Dataset) -> bool:
    """Whether these are the questions of the run: by fingerprint, or where a run was killed before it wrote
    one, by the prompts of its samples."""
    doc_ids = task_run.traces.doc_ids
    if len(doc_ids) and doc_ids.max() >= len(docs):
        return False
    if FINGERPRINT in task_run.data:
        return questions_fingerprint(docs) == task_run.data[FINGERPRINT]
    return all(
        loaded.doc_to_text(doc).strip() == trace.prompts.get("macro", "").strip()
        for doc, trace in zip(docs.select(doc_ids.tolist()), task_run.traces, strict=True)
    )


def overlaps(located: Sequence[Any], annotated: Sequence[Any]) -> NDArray[np.float64]:
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


class _Row(NamedTuple):
    """What a document and the answers to it give."""

    question: str
    answers: Any
    annotated_box: Any
    coverage: float
    question_key: str
    macro: float
    micro: float


def _columns(loaded: ConfigurableTask) -> dict[str, str]:
    """Which columns of the documents hold the question and the box, where the task says it."""
    return (loaded.config.metadata or {}).get("dualfocus") or {}


def _scored(
    loaded: ConfigurableTask,
    metric: str,
    traces: Traces,
    docs: Dataset,
    seen: pd.DataFrame,
    shown: Iterable[Crops],
) -> pd.DataFrame:
    """The columns of a table that need documents, each document read once. seen: see `TraceColumns`."""
    rows = _rows(loaded, metric, traces, docs, seen, shown)
    parts = []
    for start in range(0, max(len(seen), 1), _AT_ONCE):
        some = list(islice(rows, _AT_ONCE))
        boxes = seen.iloc[start : start + _AT_ONCE][list(BOX)].to_numpy()
        column = dict(
            zip(_Row._fields, zip(*some, strict=True) if some else [()] * len(_Row._fields), strict=True)
        )
        annotated = column.pop("annotated_box")
        found = {
            "annotated": [box is not None for box in annotated],
            "iou": overlaps(boxes, annotated),
            **{name: np.array(column[name], dtype=float) for name in ("coverage", "macro", "micro")},
            **{name: list(column[name]) for name in ("question", "answers", "question_key")},
        }
        parts.append(pd.DataFrame(found))
    return pd.concat(parts, ignore_index=True)


def _rows(
    loaded: ConfigurableTask,
    metric: str,
    traces: Traces,
    docs: Dataset,
    seen: pd.DataFrame,
    shown: Iterable[Crops],
) -> Iterator[_Row]:
    columns = _columns(loaded)
    name = columns.get("question")
    prompts = repeat("", len(traces)) if name else (trace.prompts.get("macro", "") for trace in traces)
    same = _Shared()
    known = (seen[column] for column in ("text_macro", "text_micro", *SIZE))
    given = zip(traces.doc_ids, *known, strict=True)
    every = zip(given, shown, prompts, each_doc(docs), strict=True)
    for (doc_id, text_macro, text_micro, width, height), crops, prompt, doc in every:
        value = process_results(loaded, doc, text_macro)[metric]
        macro = micro = _score(value)
        if text_micro is None:
            micro = np.nan
        elif text_micro != text_macro:
            micro = _score(process_results(loaded, doc, text_micro)[metric])
        box, regions = annotated_regions(doc, columns)
        yield _Row(
            question=prompt if name is None else doc[name],
            answers=same(loaded.doc_to_target(doc)),
            annotated_box=box,
            coverage=coverage(crops, (width, height), regions),
            question_key=question_key(value, doc_id),
            macro=macro,
            micro=micro,
        )


class _Shared:
    """Gives equal values as one object, as far as there are few: most answers are one of some words."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
        key = tuple(value) if is_list else value
        if not is_list and not isinstance(value, str):
            return value
        if len(self._known) < _MOST_SHARED:
            return self._known.setdefault(key, value)
        return self._known.get(key, value)


def _table(traces: Traces, seen: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    """See `Outcomes`."""
    ppl = {name: seen[f"ppl_{name}"].to_numpy() for name in ("macro", "micro")}
    table = pd.DataFrame(
        {
            "doc_id": traces.doc_ids,
            **{name: seen[name] for name in TEXTS},
            **{f"ppl_{name}": values for name, values in ppl.items()},
            **{f"nll_{name}": np.log(values) for name, values in ppl.items()},
            "confidence_macro": 1 / ppl["macro"],
            **{
                name: scored[name]
                for name in ("question", "answers", "annotated", "iou", "coverage", "question_key")
            },
            **{name: scored[name] for name in ("macro", "micro")},
        },
        copy=False,
    )
    table["selected"] = table["macro"].where(table["pathway"] == "macro", table["micro"])
    table["oracle"] = table[["macro", "micro"]].max(axis=1)
    return table


def question_key(value: Any, doc_id: int) -> str:
    """The question of a sample, by the key `question` in what the task's metric says of its answer, with
    which it tells questions apart itself; without one the doc_id."""
    if isinstance(value, Mapping) and "question" in value:
        return str(value["question"])
    return str(doc_id)


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
