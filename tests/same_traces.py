"""What makes the traces of two engines the same."""

from __future__ import annotations

import pytest

from dualfocus_lmms import Trace


def assert_same(trace: Trace, other: Trace) -> None:
    for ours, theirs in zip(trace.answers, other.answers, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    assert (trace.box, trace.crop, trace.fallback) == (other.box, other.crop, other.fallback)
    assert (trace.input_size, trace.crop_size) == (other.input_size, other.crop_size)
