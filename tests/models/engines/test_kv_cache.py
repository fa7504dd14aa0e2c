"""The cache: what is written into its free slots, and when it has to be copied."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from dualfocus_lmms.models.engines.kv_cache import SHARED, PrefixCache, empty, join_caches

CONFIG = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
)


@pytest.fixture
def state() -> PrefixCache:
    return empty(CONFIG, 3, torch.device("cpu"))


def extend(state: PrefixCache, slots: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """New keys and values in both layers; those of the first layer, all of them."""
    new = torch.randn(2, rows, 2, slots, 4)
    held = [state.cache.update(new[0], new[1], layer) for layer in (0, 1)]
    assert torch.equal(held[0][0][:, :, -slots:], new[0])
    assert torch.equal(held[1][1][:, :, -slots:], new[1])
    return held[0]


def test_a_second_look_with_reserved_slots_copies_nothing(state):
    state.reserve(600)
    first = extend(state, 600)
    for slots in (1, 40, 600):
        longer = extend(state, slots)
        assert [part.data_ptr() for part in longer] == [part.data_ptr() for part in first]
        assert torch.equal(longer[0][:, :, :600], first[0])
        assert torch.equal(longer[1][:, :, :600], first[1])


def test_past_its_free_slots_the_cache_is_copied_and_holds_the_same(state):
    first = extend(state, 5)
    kept = [part.clone() for part in first]
    longer = extend(state, 600)
    assert longer[0].data_ptr() != first[0].data_ptr()
    assert longer[0].shape == longer[1].shape == (3, 2, 605, 4)
    assert torch.equal(longer[0][:, :, :5], kept[0])
    assert torch.equal(longer[1][:, :, :5], kept[1])


def test_a_reserve_is_used_once(state):
    state.reserve(600)
    extend(state, 5)
    extend(state, 2000)
    layer = state.cache.layers[0]
    assert layer._buffer[0].shape[2] < 2005 + 600


def test_padding_of_joined_caches_is_holes():
    """As where questions of several batches wait for their second look (`skip_confidence`)."""
    parts = []
    for slots in (2, 5):
        part = empty(CONFIG, 2, torch.device("cpu"))
        extend(part, slots, rows=2)
        part.branch_ids = torch.full((2, slots), SHARED)
        parts.append(part)
    joined = join_caches(parts)
    assert joined.branch_ids.tolist() == [[1, 1, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 1]] * 2
    for layer, *same in zip(joined.cache.layers, *(part.cache.layers for part in parts), strict=True):
        for name in ("keys", "values"):
            assert torch.equal(getattr(layer, name)[:2, :, :2], getattr(same[0], name))
            assert torch.equal(getattr(layer, name)[2:], getattr(same[1], name))
