"""What the page shows of a trace."""

from __future__ import annotations

import json
import math

import pytest

from dualfocus_lmms import Answer, Selection, Trace
from dualfocus_lmms.results.report import sample_details
from dualfocus_lmms.types import Usage


def make_trace(usage: Usage) -> Trace:
    return Trace(
        key={},
        question_id="",
        prompts={"macro": "x" * 5000, "locate": "where?"},
        image_size=(10, 10),
        image_hash="",
        selection=Selection("macro", "yes", "ppl"),
        macro=Answer("macro", "yes", (1,), (-0.5, -0.125), ended=True, usage=usage),
        locate=Answer("locate", "nowhere", tuple(range(300)), (-0.25,) * 300, ended=False, usage=usage),
        fallback="no_box",
    )


def test_the_whole_trace_as_json():
    found = sample_details.detail(make_trace(Usage(tokens=12, encodes=1, seconds=0.5)))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert len(found["prompts"]["macro"]) == sample_details.LONGEST
    macro, locate = found["replies"]
    assert (macro["stage"], macro["text"], macro["ended"]) == ("macro", "yes", True)
    assert (macro["tokens"], macro["logprobs"]) == ([1], [-0.5, -0.125])
    assert (macro["seconds"], macro["computed"], macro["encodes"]) == (0.5, 12, 1)
    assert (len(locate["logprobs"]), locate["more"]) == (sample_details.MOST_TOKENS, 100)
    assert "holds no box" in found["verdict"]


def test_seconds_of_all_replies():
    assert sample_details.seconds(make_trace(Usage(tokens=1, encodes=0, seconds=0.5))) == pytest.approx(1.0)
    assert math.isnan(sample_details.seconds(make_trace(Usage())))
