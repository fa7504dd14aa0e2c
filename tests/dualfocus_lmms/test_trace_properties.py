"""Every trace comes back from its line of JSON as it was."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dualfocus_lmms.attention_map import SIDE, AttentionMap
from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer, JointScores, Scores, Selection, Stage, Usage

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(), max_size=20)  # surrogates, quotes and every kind of line break among them
logprobs = st.floats(-1e6, 0)
pathways: st.SearchStrategy[Stage] = st.sampled_from(["macro", "micro"])
boxes = st.tuples(finite, finite, finite, finite)
usages = st.builds(Usage, st.integers(0, 10**9), st.integers(0, 99), st.floats(0, 1e6))


@st.composite
def answers(draw: st.DrawFn, stage: Stage) -> Answer:
    ended = draw(st.booleans())
    tokens = draw(st.lists(st.integers(0, 2**31), min_size=0 if ended else 1, max_size=5))
    count = len(tokens) + ended
    values = draw(st.lists(logprobs, min_size=count, max_size=count))
    return Answer(stage, draw(texts), tuple(tokens), tuple(values), ended, draw(usages))


scores = st.builds(
    Scores,
    texts,
    st.lists(logprobs, min_size=1, max_size=4).map(tuple),
    st.lists(logprobs, max_size=2).map(tuple),
)
judged = st.one_of(
    st.builds(JointScores, texts, scores, scores, st.none(), st.floats(0, 1e6)),
    st.builds(JointScores, texts, winner=pathways),
)
maps = st.builds(
    lambda rows, columns, low, high, fill: AttentionMap(
        rows, columns, (-0.5, 0.0, 1.5, 1.0), low, high, b64encode(bytes([fill]) * rows * columns).decode()
    ),
    *[st.integers(1, SIDE)] * 2,
    *[finite] * 2,
    st.integers(0, 255),
)
keys = st.dictionaries(texts, st.one_of(st.none(), st.booleans(), st.integers(), finite, texts), max_size=4)

traces = st.builds(
    Trace,
    key=keys,
    question_id=texts,
    prompts=st.dictionaries(st.sampled_from(["macro", "locate", "micro"]), texts),
    image_size=st.tuples(st.integers(1, 99_999), st.integers(1, 99_999)),
    image_hash=texts,
    selection=st.builds(Selection, pathways, texts, texts, st.none() | finite),
    macro=answers("macro"),
    locate=st.none() | answers("locate"),
    micro=st.none() | answers("micro"),
    box=st.none() | boxes,
    crop=st.none() | st.tuples(*[st.integers(0, 99_999)] * 4),
    fallback=st.none() | texts,
    ppl=st.dictionaries(pathways, st.floats(1, 1e300)),
    grounding=texts,
    given_reply=st.none() | texts,
    box_shift=st.integers(0, 999),
    shifted_box=st.none() | boxes,
    judged=st.none() | judged,
    attention=st.none() | maps,
)


def everything(trace: Trace) -> Any:
    """All fields, with those that `==` leaves out."""
    return trace, None if trace.judged is None else trace.judged.seconds


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(trace=traces)
def test_there_and_back(trace: Trace) -> None:
    line = trace.to_json()
    assert "\n" not in line
    assert everything(Trace.from_json(line)) == everything(trace)
