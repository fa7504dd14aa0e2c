"""What the tests of results share: runs with known outcomes, written as the host and the model write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import Answer, Selection, Trace
from dualfocus_lmms.integrity import write_data
from dualfocus_lmms.tasks.common.uncertainty import mean_error
from dualfocus_lmms.trace import TraceWriter, claim_folder

# Writes a run: folder, scores by task; order and rank_of say how its traces lie on disk.
WriteRun = Callable[..., Path]


def make_trace(
    doc_id: int, task: str = "df_local", split: str = "test", macro: str = "yes", micro: str | None = "no"
) -> Trace:
    """Macro answers are the more certain ones; without micro no box was found."""
    first = Answer("macro", macro, (1,), (-0.1,), ended=False)
    second = None if micro is None else Answer("micro", micro, (2,), (-0.2,), ended=False)
    ppl = {"macro": first.ppl()} if second is None else {"macro": first.ppl(), "micro": second.ppl()}
    return Trace(
        key={"task": task, "split": split, "doc_id": doc_id, "context": "c"},
        question_id=f"{task}/{split}/{doc_id}",
        prompts={"macro": f"Question {doc_id}?"},
        image_size=(60, 40),
        image_hash=f"image {doc_id}",
        selection=Selection("macro", macro, "ppl", None if second is None else 0.1),
        macro=first,
        micro=second,
        box=None if second is None else (0.0, 0.0, 0.5, 0.5),
        fallback="no_box" if second is None else None,
        ppl=ppl,
    )


@pytest.fixture
def trace_of() -> Callable[..., Trace]:
    return make_trace


@pytest.fixture
def write_traces() -> Callable[..., Path]:
    """Writes traces as a run does, each in the file of its rank, and describes their data."""

    def write(
        folder: Path,
        traces: Sequence[Trace],
        ranks: Callable[[int], int] = lambda place: 0,
        documents: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        claim_folder(folder, settings or {"pretrained": "/somewhere/nano", "versions": {"torch": "2"}}, False)
        for rank in sorted({ranks(place) for place in range(len(traces))}):
            writer = TraceWriter(folder, rank)
            writer.write(trace for place, trace in enumerate(traces) if ranks(place) == rank)
            writer.close()
        if documents is not None:
            write_data(folder, documents)
        return folder

    return write


@pytest.fixture
def write_run(write_traces: Callable[..., Path]) -> WriteRun:
    """Writes a run whose task `df_local` has the given scores, 0 to 100 each.

    order: of its samples on disk. questions: the documents, by which the data are known. date: of the run.
    """

    def write(
        folder: Path,
        scores: Sequence[float],
        task: str = "df_local",
        order: Callable[[Sequence[int]], Sequence[int]] = list,
        ranks: Callable[[int], int] = lambda place: 0,
        questions: Sequence[Mapping[str, Any]] | None = None,
        date: str = "20261122_000000",
    ) -> Path:
        asked = order(range(len(scores)))
        docs = questions or [{"question": f"Question {doc_id}?"} for doc_id in range(len(scores))]
        traces = [make_trace(doc_id, task) for doc_id in asked]
        write_traces(folder / "traces", traces, ranks, {f"{task}/test": docs})
        write_json(folder / "model" / f"{date}_results.json", host_results({task: scores}, date))
        rows = [host_sample(doc_id, scores[doc_id]) for doc_id in asked]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "model" / f"{date}_samples_{task}.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return write


def host_results(tasks: Mapping[str, Sequence[float]], date: str) -> dict[str, Any]:
    """The host's results JSON of tasks whose one metric is the accuracy."""
    return {
        "results": {
            task: {
                "alias": task,
                "accuracy,none": sum(scores) / len(scores),
                "accuracy_stderr,none": mean_error(scores),
            }
            for task, scores in tasks.items()
        },
        "higher_is_better": {task: {"accuracy": True} for task in tasks},
        "configs": {task: {"task": task, "test_split": "test"} for task in tasks},
        "n-samples": {
            task: {"original": len(scores), "effective": len(scores)} for task, scores in tasks.items()
        },
        "config": {"model_args": "pretrained=nano,batch_size=8", "resolved_cli_args": {"include_path": None}},
        "date": date,
    }


def host_sample(doc_id: int, score: float) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "input": f"Question {doc_id}?",
        "target": "yes",
        "filtered_resps": "yes" if score == 100 else "no | maybe",
        "accuracy": score,
    }


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
