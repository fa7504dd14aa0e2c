"""Which answer a run takes, on a scripted model: the skip gate, the rules, ties."""

from __future__ import annotations

import math

import pytest
from scripted_flow import SCRIPT, question, run

from dualfocus_lmms import Settings, Trace
from dualfocus_lmms.testing import FakeBackend, Reply


@pytest.mark.parametrize(
    ("threshold", "probability", "skipped"),
    [
        (1, 1.0, False),  # 1 never skips
        (1.0, 0.99, False),
        (0, 0.001, True),  # 0 always does
        (0.5, 0.5, False),  # strictly above
        (0.5, 0.5000001, True),
        (0.5, 0.4999999, False),
        (0.8, 0.81, True),
        (0.8, 0.79, False),
    ],
)
def test_skip_gate(threshold: float, probability: float, skipped: bool) -> None:
    logprob = math.log(probability)
    backend = FakeBackend(SCRIPT | {"macro": Reply("cat", (logprob, logprob), eos=-5.0)})
    (trace,) = run(backend, question(), skip_confidence=threshold)
    assert len(backend.calls) == (1 if skipped else 3)
    assert trace.fallback == ("skip_confidence" if skipped else None)
    if skipped:
        assert (trace.selection.text, trace.locate, trace.micro) == ("cat", None, None)


def test_skip_gate_counts_the_closing_token_when_told() -> None:
    script = SCRIPT | {"macro": Reply("cat", (math.log(0.9),), eos=math.log(0.1))}  # 0.9 without, 0.3 with it
    assert run(FakeBackend(script), question(), skip_confidence=0.5)[0].fallback == "skip_confidence"
    assert run(FakeBackend(script), question(), skip_confidence=0.5, count_eos=True)[0].fallback is None


@pytest.mark.parametrize(
    ("settings", "expected", "rule"),
    [
        ({}, "dog", "ppl"),
        ({"select": "macro"}, "cat", "macro"),
        ({"select": "micro"}, "dog", "micro"),
        ({"count_eos": True}, "cat", "ppl"),
        # the release counts the closing token
        ({"protocol": "release", "select": "ppl_tie_macro"}, "cat", "ppl_tie_macro"),
        ({"protocol": "release", "select": "ppl_tie_macro", "count_eos": False}, "dog", "ppl_tie_macro"),
        ({"protocol": "release", "select": "micro"}, "dog", "micro"),
    ],
)
def test_selection_by_rule(settings: dict, expected: str, rule: str) -> None:
    script = SCRIPT | {"macro": Reply("cat", (-0.5,), eos=-0.1), "micro": Reply("dog", (-0.25,), eos=-2.0)}
    (trace,) = run(FakeBackend(script), question(), **settings)
    assert (trace.selection.text, trace.selection.rule) == (expected, rule)
    count_eos = Settings.of(**settings).count_eos
    macro, micro = ((0.5 + 0.1) / 2, (0.25 + 2.0) / 2) if count_eos else (0.5, 0.25)
    assert trace.selection.margin == pytest.approx(micro - macro)
    assert trace.ppl == pytest.approx({"macro": math.exp(macro), "micro": math.exp(micro)})


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("ppl", "dog"), ("ppl_tie_macro", "cat"), ("release", "cat"), ("micro_context", "dog")],
)
def test_ties(rule: str, expected: str) -> None:
    script = SCRIPT | {"macro": Reply("cat", (-0.3,)), "micro": Reply("dog", (-0.3,))}
    backend = FakeBackend(script, scores={"cat": (-0.3, -0.01), "dog": (-0.3, -0.01)})
    (trace,) = run(backend, question(), select=rule)
    assert trace.selection.text == expected
    assert trace.selection.margin == 0


def test_answers_without_words_or_hope() -> None:
    script = SCRIPT | {"macro": Reply("", (), eos=-0.4), "micro": Reply("dog", (-900.0,))}
    (trace,) = run(FakeBackend(script), question())
    assert (trace.selection.pathway, trace.selection.text) == ("macro", "")
    assert trace.ppl["macro"] == pytest.approx(math.exp(0.4))
    assert trace.micro is not None
    assert trace.micro.ppl() == math.inf
    assert Trace.from_json(trace.to_json()) == trace


def test_the_seconds_of_the_joint_scores_are_shared_by_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the flow stands still but while answers are scored, which takes eight seconds."""
    clock = [100.0]
    monkeypatch.setattr("dualfocus_lmms.flow.time.perf_counter", lambda: clock[0])
    backend = FakeBackend(SCRIPT)
    score = backend.score

    def slow(conversations):
        clock[0] += 8
        return score(conversations)

    backend.score = slow
    traces = run(backend, *(question(str(number)) for number in range(4)), select="micro_context")
    assert [trace.judged.seconds for trace in traces] == [2.0] * 4
