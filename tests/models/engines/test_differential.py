"""The differential fuzz at a small size, and that it tells a difference from a tie."""

from __future__ import annotations

import dataclasses

import differential
import pytest
from differential import DifferentError, TieError, compare
from random_models import FAMILIES

from dualfocus_lmms import Answer, Selection, Trace

pytestmark = pytest.mark.seconds(25)

MACRO = Answer("macro", "ab", (1, 2), (-0.5, -1.0, -0.1), True)
MICRO = Answer("micro", "ac", (1, 3), (-0.5, -1.0), False)
TRACE = Trace(
    key={"id": "1"},
    question_id="1",
    prompts={"macro": "What?"},
    image_size=(4, 4),
    image_hash="0",
    selection=Selection("micro", "ac", "ppl", 0.3),
    macro=MACRO,
    micro=MICRO,
    box=(0.0, 0.0, 0.5, 0.5),
    crop=(0, 0, 2, 2),
)


def changed(stage: str, **values: object) -> Trace:
    return dataclasses.replace(TRACE, **{stage: dataclasses.replace(getattr(TRACE, stage), **values)})


def test_every_engine_equals_naive_on_random_models_of_every_family() -> None:
    result = differential.differential(range(len(FAMILIES)), questions=2, seed=1)
    assert result.different == 0
    assert {family for family, _ in result.tallies} == {*FAMILIES}
    assert {engine for _, engine in result.tallies} == {*differential.ENGINES}
    assert 0 < max(tally.gap for tally in result.tallies.values()) < differential.TOLERANCE
    assert sum(counts["micro answers"] for counts in result.seen.values()) > 0


def test_the_largest_gap_is_returned() -> None:
    assert compare(TRACE, TRACE) == 0
    assert compare(changed("macro", logprobs=(-0.5, -1.00004, -0.1)), TRACE) == pytest.approx(4e-5)


@pytest.mark.parametrize(
    "trace",
    [
        changed("macro", logprobs=(-0.5, -1.001, -0.1)),
        changed("macro", logprobs=(-0.5, -1.001, -0.1), tokens=(1, 4)),
        changed("macro", logprobs=(-0.5, -1.0), ended=False),  # the same tokens, and no end
        changed("macro", text="a b"),
        changed("micro", logprobs=(-0.5, -1.1)),
        changed("selection", pathway="macro", text="ab"),
        dataclasses.replace(TRACE, micro=None, crop=None, fallback="no_box"),
        dataclasses.replace(TRACE, box=(0.0, 0.0, 0.5, 0.6)),
        dataclasses.replace(TRACE, crop=(0, 0, 2, 3)),
    ],
)
def test_what_differs_is_found(trace: Trace) -> None:
    with pytest.raises(DifferentError):
        compare(trace, TRACE)


def test_equally_probable_tokens_equal_answers_and_a_confidence_at_the_gate_are_ties() -> None:
    with pytest.raises(TieError):
        compare(changed("macro", tokens=(1, 4), text="ad"), TRACE)
    equal = changed("selection", margin=1e-5)
    other = changed("selection", margin=-1e-5, pathway="macro", text="ab")
    with pytest.raises(TieError):
        compare(other, equal)
    skipped = dataclasses.replace(TRACE, micro=None, crop=None, box=None, fallback="skip_confidence")
    with pytest.raises(TieError):
        compare(skipped, TRACE, skip_confidence=MACRO.confidence())
    with pytest.raises(DifferentError):
        compare(skipped, TRACE, skip_confidence=0.9)


def test_the_script_ends_with_1_where_something_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = differential.Result()
    found.tallies["llava", "tree"].compared = 7
    found.seen["llava"]["questions"] = 7
    monkeypatch.setattr(differential, "differential", lambda *_: found)
    assert differential.main(["--models", "1"]) == 0
    found.tallies["llava", "tree"].different = 1
    assert differential.main(["--models", "1"]) == 1
    assert "| llava    | tree" in capsys.readouterr().out
