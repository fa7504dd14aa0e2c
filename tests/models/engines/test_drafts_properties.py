"""Drafts never change a reply: what is verified is plain greedy decoding, whatever a draft expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualfocus_lmms import Box, StopCriteria
from dualfocus_lmms.models.checkpoint.tokenize_chat import Rendered
from dualfocus_lmms.models.engines.batch_rows import Row
from dualfocus_lmms.models.engines.drafts import Draft, box_draft
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.plugins import FAMILIES, load_family, names

EOS = 0
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=50, database=None)
FORMATS = sorted({load_family(name).box_format for name in names(FAMILIES)}, key=lambda form: form.template)

Model = Callable[[Sequence[int]], int]  # from the tokens of a reply so far to the next one
Reply = tuple[list[int], list[float], bool]  # tokens, log-probabilities, whether it ended

tokens = st.integers(1, 5)
runs = st.lists(tokens, min_size=1, max_size=4).map(tuple)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    """Any draft over a vocabulary of five tokens: of a box, whose first run may be empty, or of one reply."""
    between = draw(st.lists(st.tuples(st.integers(1, 3), runs), max_size=4))
    first = draw(runs | st.just(()))
    gap_token = draw(tokens | st.none())
    return Draft((first, *(run for _, run in between)), tuple(gap for gap, _ in between), gap_token)


def model_that_says(reply: Sequence[int], seed: int = 0) -> Model:
    """Says `reply` and ends; after any other beginning something that depends on all of it."""
    said = [*reply, EOS]

    def following(prefix: Sequence[int]) -> int:
        if list(prefix) == said[: len(prefix)] and len(prefix) < len(said):
            return said[len(prefix)]
        return Random(f"{seed} {list(prefix)}").randint(EOS, 5)

    return following


def logprob(prefix: Sequence[int], token: int) -> float:
    return -Random(f"{list(prefix)} {token}").random()


def greedy(model: Model, most: int) -> Reply:
    """One token a forward."""
    said: list[int] = []
    logprobs: list[float] = []
    while len(said) < most:
        token = model(said)
        logprobs.append(logprob(said, token))
        if token == EOS:
            return said, logprobs, True
        said.append(token)
    return said, logprobs, False


def drafted(model: Model, draft: Draft, most: int) -> tuple[Reply, int]:
    """The reply of a row with a draft, and the number of forwards."""
    backend = object.__new__(SharedBackend)  # without weights: only what verifies
    backend.eos_ids = frozenset({EOS})
    row = Row(Rendered((), ()), (), torch.zeros(1, 0), StopCriteria(most), 0, draft)
    forwards = 0
    while not row.done:
        row.propose()
        assert len(row.tokens) + len(row.draft_tokens) < most
        read = [[*row.tokens, *row.draft_tokens[:end]] for end in range(len(row.draft_tokens) + 1)]
        chosen = [model(prefix) for prefix in read]
        known = len(row.tokens)
        rejected = backend._verify(row, chosen, [logprob(*pair) for pair in zip(read, chosen, strict=True)])
        kept = row.draft_tokens[: len(row.draft_tokens) - rejected]
        assert list(kept) == row.tokens[known : known + len(kept)]
        forwards += 1
    return (row.tokens, row.logprobs, row.ended), forwards


@settings(EXAMPLES, max_examples=150)
@given(drafts(), st.lists(tokens, max_size=20), st.integers(1, 24), st.integers(0, 9))
def test_any_draft_leaves_any_reply_as_it_is(draft: Draft, reply: list[int], most: int, seed: int):
    model = model_that_says(reply, seed)
    expected = greedy(model, most)
    found, forwards = drafted(model, draft, most)
    assert found == expected
    assert 1 <= forwards <= len(expected[1])


@EXAMPLES
@given(drafts(), st.data())
def test_a_reply_that_begins_as_expected_stays_too(draft: Draft, data: st.DataObject):
    """With gaps of any length: what comes after one is drafted where the gap is the usual one."""
    reply = [*draft.runs[0]]
    for run in draft.runs[1:]:
        reply += [*data.draw(st.lists(tokens, min_size=1, max_size=3)), *run]
    model = model_that_says(reply)
    assert drafted(model, draft, 40)[0] == greedy(model, 40) == (reply, greedy(model, 40)[1], True)


@EXAMPLES
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.sampled_from(FORMATS), st.text(max_size=5))
def test_boxes_of_every_family_take_fewer_forwards_and_stay_as_they_are(corners, form, more: str):
    x, y = sorted(corners[:2]), sorted(corners[2:])
    sizes = (640, 480), (640, 480)
    text = form.write(Box(x[0], y[0], x[1], y[1]), *sizes)
    model = model_that_says([ord(letter) + 6 for letter in text + more])
    draft = box_draft(form, lambda text: [ord(letter) + 6 for letter in text])
    expected = greedy(model, 64)
    found, forwards = drafted(model, draft, 64)
    assert found == expected
    assert forwards < len(expected[1])


@EXAMPLES
@given(st.lists(tokens, max_size=12), st.lists(tokens, max_size=12), st.integers(1, 16))
def test_a_micro_reply_is_its_own_whatever_the_macro_one_was(macro: list[int], micro: list[int], most: int):
    model = model_that_says(micro)
    found, forwards = drafted(model, Draft((tuple(macro),)), most)
    assert found == greedy(model, most)
    if macro == micro:
        assert forwards == 1
