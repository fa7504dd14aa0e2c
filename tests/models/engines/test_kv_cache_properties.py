"""Rows that are joined and taken keep their slots, and padding is visible to nobody."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from dualfocus_lmms.models.engines.kv_cache import (
    SHARED,
    PrefixCache,
    empty,
    join_caches,
    match_prefixes,
    take_rows,
)

CONFIG = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=2)
EXAMPLES = settings(derandomize=True, deadline=None, max_examples=40, database=None)

branch_ids = st.sampled_from([0, SHARED, SHARED, SHARED + 1, SHARED + 2])


def columns(rows: int, slots: int) -> st.SearchStrategy[list[list[int]]]:
    """Their branch_ids."""
    row = st.lists(branch_ids, min_size=slots, max_size=slots)
    return st.lists(row, min_size=rows, max_size=rows)


@st.composite
def caches(draw: st.DrawFn, number: int = 0) -> PrefixCache:
    """One to four rows of the same number of slots, appended in one or two steps."""
    rows = draw(st.integers(1, 4))
    state = empty(CONFIG, rows, torch.device("cpu"))
    for _ in range(draw(st.integers(1, 2))):
        slots = draw(st.integers(1, 6))
        extend(state, draw(columns(rows, slots)))
    state.keys = [(number, row) for row in range(rows)]
    return state


batches = st.integers(1, 4).flatmap(lambda count: st.tuples(*(caches(number) for number in range(count))))


def extend(state: PrefixCache, new: list[list[int]]) -> None:
    """Append columns with these branch_ids, as a forward does."""
    rows, slots = len(new), len(new[0])
    for layer in range(2):
        values = torch.randn(rows, 2, slots, 4)
        state.cache.update(values, -values, layer)
    state.branch_ids = torch.cat([state.branch_ids, torch.tensor(new)], dim=1)


def slots_of(state: PrefixCache, row: int, length: int) -> list[torch.Tensor]:
    """branch_ids, and keys and values of each layer, of the first slots of a row."""
    layers = [part for layer in state.cache.layers for part in (layer.keys, layer.values)]
    return [state.branch_ids[row, :length], *(part[row, :, :length] for part in layers)]


def assert_same_row(state: PrefixCache, row: int, part: PrefixCache, place: int) -> None:
    """A row and the one it comes from: the same key and slots, and after these nothing but holes."""
    length = part.branch_ids.shape[1]
    assert state.keys[row] == part.keys[place]
    for one, other in zip(slots_of(state, row, length), slots_of(part, place, length), strict=True):
        assert torch.equal(one, other)
    assert not state.branch_ids[row, length:].any()
    assert {layer.keys.shape[2] for layer in state.cache.layers} == {state.branch_ids.shape[1]}


@EXAMPLES
@given(batches)
def test_taking_the_rows_of_a_batch_undoes_a_join(parts):
    places = [(part, row) for part in parts for row in range(len(part.keys))]
    joined = join_caches(parts)
    assert joined.keys == [key for part in parts for key in part.keys]
    for number, place in enumerate(places):
        assert_same_row(joined, number, *place)
    for part in parts:
        numbers = [number for number, (owner, _) in enumerate(places) if owner is part]
        taken, rest = take_rows([joined], numbers)
        for row in range(len(part.keys)):
            assert_same_row(taken, row, part, row)
        left = [place for place in places if place[0] is not part]
        assert [key for some in rest for key in some.keys] == [part.keys[row] for part, row in left]


@EXAMPLES
@given(batches, st.data())
def test_rows_are_taken_in_the_order_given_and_the_others_are_left(parts, data: st.DataObject):
    places = [(part, row) for part in parts for row in range(len(part.keys))]
    numbers = data.draw(st.lists(st.sampled_from(range(len(places))), min_size=1, max_size=8))  # some twice
    taken, rest = take_rows(parts, numbers)
    assert len(taken.keys) == len(numbers)
    for row, number in enumerate(numbers):
        assert_same_row(taken, row, *places[number])
    left = [place for number, place in enumerate(places) if number not in numbers]
    found = [(some, row) for some in rest for row in range(len(some.keys))]
    assert len(found) == len(left)
    for one, other in zip(found, left, strict=True):
        assert_same_row(*one, *other)


@EXAMPLES
@given(batches, st.data())
def test_new_columns_see_what_they_would_see_without_a_join(parts, data: st.DataObject):
    """The columns of the row's own cache, those before them in their branch, and no padding."""
    joined = join_caches(parts)
    rows, width = len(joined.keys), data.draw(st.integers(1, 3))
    new = data.draw(columns(rows, width))
    before = [[one.clone() for one in slots_of(part, 0, part.branch_ids.shape[1])] for part in parts]
    if len(parts) > 1:
        slots = joined.branch_ids.shape[1]
        extend(joined, new)
        visible = joined.visible_to(torch.tensor(new))
        first = 0
        for part in parts:
            own, length = slice(first, first + len(part.keys)), part.branch_ids.shape[1]
            first += len(part.keys)
            alone = PrefixCache(part.cache, part.branch_ids, part.keys)
            alone.branch_ids = torch.cat([alone.branch_ids, torch.tensor(new[own])], dim=1)
            expected = alone.visible_to(torch.tensor(new[own]))
            assert torch.equal(visible[own, :, :length], expected[:, :, :length])
            assert not visible[own, :, length:slots].any()
            assert torch.equal(visible[own, :, slots:], expected[:, :, length:])
    for part, slots_before in zip(parts, before, strict=True):  # and the parts are as they were
        for one, other in zip(slots_of(part, 0, part.branch_ids.shape[1]), slots_before, strict=True):
            assert torch.equal(one, other)


@EXAMPLES
@given(caches(), st.data())
def test_visible_slots_by_definition(state: PrefixCache, data: st.DataObject):
    width = data.draw(st.integers(1, 3))
    rows = len(state.keys)
    new = data.draw(columns(rows, width))
    extend(state, new)
    visible = state.visible_to(torch.tensor(new)).tolist()
    slots = state.branch_ids.shape[1]
    for row, column, slot in [(r, c, s) for r in range(rows) for c in range(width) for s in range(slots)]:
        own, other = new[row][column], int(state.branch_ids[row, slot])
        earlier = slot <= slots - width + column
        assert visible[row][column][slot] == (earlier and (other == SHARED or 0 < other == own))


prefixes = st.lists(st.lists(st.integers(0, 2), max_size=4).map(tuple), max_size=6)


@EXAMPLES
@given(prefixes, prefixes)
def test_each_key_gets_the_longest_prefix_that_it_extends(keys, known):
    index = match_prefixes(keys, known)
    longest = [
        max((len(one) for one in known if len(one) < len(key) and key[: len(one)] == one), default=None)
        for key in keys
    ]
    if None in longest:
        assert index == []
    else:
        assert [len(known[number]) for number in index] == longest
        assert all(
            key[: len(known[number])] == known[number] for key, number in zip(keys, index, strict=True)
        )
