"""The small model's figures, from traces whose outcomes are known."""

from __future__ import annotations

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.flow import Settings, answer_batch
from dualfocus_lmms.tasks import nano_docs
from dualfocus_lmms.tasks.nano_measure import Outcome, accuracy, against, measure, outcomes, tables
from dualfocus_lmms.testing import FakeBackend
from dualfocus_lmms.trace import TraceWriter
from dualfocus_lmms.types import Limits, Question


def outcome(macro: bool, micro: bool, selected: bool, iou: float = 1.0) -> Outcome:
    return Outcome("detail", macro, micro, selected, iou)


ROWS = [
    *[outcome(True, True, True)] * 50,
    *[outcome(False, True, True, 0.6)] * 30,
    *[outcome(True, False, False, 0.0)] * 5,
    *[outcome(False, False, False, 0.5)] * 15,
]


def test_shares_intervals_and_boxes():
    figures = accuracy(ROWS)
    assert figures["n"] == 100
    assert figures["macro"][0] == 55
    assert figures["micro"][0] == figures["selected"][0] == 80
    assert figures["oracle"][0] == 85
    assert figures["selected"][1:] == pytest.approx([71.1, 86.7], abs=0.05)  # Wilson's, by hand
    assert figures["iou"] == pytest.approx(0.5 + 0.3 * 0.6 + 0.15 * 0.5)
    assert figures["iou_half"] == 80


def test_paired_tests_count_the_questions_that_differ():
    better = against(ROWS, "macro")
    assert (better["only_selected"], better["only_macro"]) == (30, 5)
    assert better["p"] == pytest.approx(2.2e-5, rel=0.05)
    assert against(ROWS, "micro") == {"only_selected": 0, "only_micro": 0, "p": 1.0}


@pytest.fixture
def traces(tmp_path, monkeypatch):
    """Traces of the questions about two scenes, every one answered "yes"."""
    monkeypatch.setattr(nano_docs, "SCENES", 2)
    asked = [
        Question(
            id=f"{kind}/{number}",
            image=nano_docs.picture(doc)[0],
            text=doc["question"],
            prompt=nano_docs.prompt(doc),
            key={"task": f"df_nano_{kind}", "split": "test", "doc_id": number},
        )
        for kind in ("detail", "exist", "global")
        for number, doc in enumerate(nano_docs.questions("test", kind))
    ]
    backend = FakeBackend({"macro": "yes", "locate": "[0.00, 0.00, 1.00, 1.00]", "micro": "yes"})
    found = answer_batch(backend, asked, [Limits(16)] * len(asked), Settings.of())
    TraceWriter(tmp_path, 0).write(found[:-1])
    return tmp_path


def test_a_run_is_measured_against_its_own_questions(traces):
    with pytest.raises(UserError):
        outcomes(traces)  # one is missing
    figures = measure(traces, partial=True)
    assert figures["accuracy"]["exist"]["macro"][0] == 50
    assert figures["accuracy"]["detail"]["oracle"][0] == 0
    docs = [doc for kind in ("detail", "exist", "global") for doc in nano_docs.questions("test", kind)]
    assert figures["accuracy"]["all"]["n"] == len(docs) - 1
    whole = [doc["box"] == [0.0, 0.0, 1.0, 1.0] for doc in docs[:-1]]
    assert figures["accuracy"]["all"]["iou_half"] >= round(100 * sum(whole) / len(whole), 2)
    assert tables(figures).count("\n") > 7


def test_a_folder_without_traces_of_these_tasks_is_refused(tmp_path):
    with pytest.raises(UserError):
        outcomes(tmp_path, partial=True)
