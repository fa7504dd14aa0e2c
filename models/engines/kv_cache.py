"""The KV cache of a batch of ragged rows: which slots are valid, and how it is forked, joined and extended.

Two rows, with prompts of three tokens and of one. The second row has holes, branch_id 0, in two slots:

>>> from transformers import LlamaConfig
>>> config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
>>> state = empty(config, 2, torch.device("cpu"))
>>> def extend(state, branch_ids):
...     slots = torch.tensor(branch_ids)
...     new = torch.zeros(len(slots), 2, slots.shape[1], 4)  # keys or values (B, heads, S, D)
...     state.cache.update(new, new, 0)
...     state.branch_ids = torch.cat([state.branch_ids, slots], dim=1)
>>> extend(state, [[1, 1, 1], [1, 0, 0]])
>>> state.keys = [(11, 12, 13), (21,)]

A fork keeps these slots as they are, whatever is appended to the original afterwards:

>>> fork = state.cut(3, state.keys)
>>> extend(state, [[1, 1], [1, 1]])
>>> state.branch_ids.tolist(), fork.branch_ids.tolist()
([[1, 1, 1, 1, 1], [1, 0, 0, 1, 1]], [[1, 1, 1], [1, 0, 0]])

The last appended token of the first row was a draft token that the model did not confirm:

>>> state.drop(0, 1)
>>> state.branch_ids.tolist()
[[1, 1, 1, 1, 0], [1, 0, 0, 1, 1]]

Prefixes of several caches become one batch, the shorter ones padded with holes:

>>> joined = join_caches([fork, state])
>>> joined.branch_ids.tolist()
[[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 1, 1]]
>>> tuple(joined.cache.layers[0].keys.shape)
(4, 2, 5, 4)

Prompts find the prefix that they extend, and take its row:

>>> match_prefixes([(21, 22), (11, 12, 13, 14)], fork.keys)
[1, 0]
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_SPARE = 64  # free slots that a layer allocates at least when it grows

# The tokens that are in a row of the cache: their ids, and for the tokens of an image its negative number.
PrefixKey = tuple[int, ...]


SHARED = 1  # the branch_id of a token that is visible to every later one


@dataclass(slots=True)
class PrefixCache:
    """B cached prefixes. keys: the tokens of each row.

    branch_ids (B, S), of the slots of each row: 0 for a hole, SHARED for a token that is visible to all later
    ones of the row, a larger number for a token that is visible only to those of the branch with that number.
    """

    cache: DynamicCache
    branch_ids: torch.Tensor
    keys: list[PrefixKey]

    def visible_to(self, new: torch.Tensor) -> torch.Tensor:
        """Which slots each of the last S columns sees, (B, S, slots): new (B, S) are their branch_ids.

        Those shared by all branches are visible to a hole too: a softmax over nothing would be NaN.
        """
        own, cached = new.to(self.branch_ids.device)[:, :, None], self.branch_ids[:, None, :]
        visible = (cached == SHARED) | ((cached == own) & (cached > 0))
        order = torch.arange(cached.shape[2], device=cached.device)
        return visible & (order <= order[-own.shape[1] :, None])

    def drop(self, row: int, count: int, branch_id: int = SHARED) -> None:
        """Turn the last `count` tokens with `branch_id` of a row into holes."""
        slots = (self.branch_ids[row] == branch_id).nonzero()[-count:, 0]
        self.branch_ids[row, slots] = 0

    def reserve(self, slots: int) -> None:
        """Let the next forward allocate `slots` more than it needs, so that later ones copy nothing."""
        for layer in self.cache.layers:
            if isinstance(layer, PreallocatedLayer):
                layer.spare = slots + _SPARE

    def select(self, index: list[int]) -> PrefixCache:
        """The rows `index`; the same object where that is all of them in order."""
        if index == list(range(len(self.keys))):
            return self
        rows = torch.tensor(index, device=self.branch_ids.device)
        cache = _copy(self.cache, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))
        return PrefixCache(
            cache, self.branch_ids.index_select(0, rows), [self.keys[position] for position in index]
        )

    def without(self, index: Collection[int]) -> PrefixCache:
        """All rows but `index`."""
        return self.select([row for row in range(len(self.keys)) if row not in index])

    def cut(self, length: int, keys: list[PrefixKey]) -> PrefixCache:
        """The first `length` slots, as views: a slot is written once, so appending changes none of them."""
        return PrefixCache(
            _copy(self.cache, lambda tensor: tensor[:, :, :length]), self.branch_ids[:, :length], keys
        )


def empty(config: Any, rows: int, device: torch.device) -> PrefixCache:
    """An empty cache for a text model's configuration; layers that cache every token are preallocated."""
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return PrefixCache(cache, torch.zeros(rows, 0, dtype=torch.long, device=device), [()] * rows)


def join_caches(parts: Sequence[PrefixCache]) -> PrefixCache:
    """The rows of one or more batches as one batch; the shorter ones are padded with holes."""
    if len(parts) == 1:
        return parts[0]
    slots = max(part.branch_ids.shape[1] for part in parts)
    cache = copy.copy(parts[0].cache)
    layers: list[Any] = [copy.copy(layer) for layer in cache.layers]
    for number, layer in enumerate(layers):
        same: list[Any] = [part.cache.layers[number] for part in parts]
        layer.keys = torch.cat([pad(one.keys, (0, 0, 0, slots - one.keys.shape[2])) for one in same])
        layer.values = torch.cat([pad(one.values, (0, 0, 0, slots - one.values.shape[2])) for one in same])
    cache.layers = layers
    branch_ids = torch.cat([pad(part.branch_ids, (0, slots - part.branch_ids.shape[1])) for part in parts])
    return PrefixCache(cache, branch_ids, [key for part in parts for key in part.keys])


def take_rows(parts: Sequence[PrefixCache], index: Sequence[int]) -> tuple[PrefixCache, list[PrefixCache]]:
    """The rows `index`, counted over all batches, as one batch; and what is left of the batches."""
    chosen, rest, first = [], [], 0
    order: list[int] = []  # of each row of `chosen`, its number in `parts`
    for part in parts:
        rows = sorted({number - first for number in index if 0 <= number - first < len(part.keys)})
        order += [first + row for row in rows]
        if rows:
            chosen.append(part.select(rows))
        if len(rows) < len(part.keys):
            rest.append(part.without(rows))
        first += len(part.keys)
    return join_caches(chosen).select([order.index(number) for number in index]), rest


def match_prefixes(keys: Sequence[PrefixKey], prefixes: Sequence[PrefixKey]) -> list[int]:
    """The number of the prefix that each key extends by one token or more: the longest, and of equal ones
    preferably one that no other key extends. Empty where a key extends none."""
    index: list[int] = []
    for key in keys:
        fitting = [number for number, prefix in enumerate(prefixes) if _extends(key, prefix)]
        if not fitting:
            return []
        index.append(max(fitting, key=lambda number: (len(prefixes[number]), number not in index)))
    return index


def image_ids(key: PrefixKey) -> set[int]:
    """The negative numbers of its images."""
    return {token for token in key if token < 0}


def _extends(key: PrefixKey, prefix: PrefixKey) -> bool:
    return len(prefix) < len(key) and key[: len(prefix)] == prefix


class PreallocatedLayer(DynamicLayer):
    """A cache layer with free slots at its end, so that appending a token does not copy those before it.

    A slot is written once, so views of the cached slots stay valid. A copy of the layer has no free slots.
    """

    keys: torch.Tensor
    values: torch.Tensor
    spare: int = _SPARE  # free slots to allocate the next time it grows
    _buffer: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values (B, heads, S + free, D)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        cached, length = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._buffer is None or self._buffer[0].shape[2] < length:
            slots, self.spare = length + self.spare, _SPARE
            self._buffer = _enlarged(self.keys, slots), _enlarged(self.values, slots)
        self._buffer[0][:, :, cached:length] = key_states
        self._buffer[1][:, :, cached:length] = value_states
        self.keys, self.values = self._buffer[0][:, :, :length], self._buffer[1][:, :, :length]
        return self.keys, self.values

    def __copy__(self) -> PreallocatedLayer:
        copied = type(self)()
        copied.__dict__.update(self.__dict__, _buffer=None)
        return copied


def _enlarged(cached: torch.Tensor, slots: int) -> torch.Tensor:
    """A tensor (B, heads, slots, D) that begins with `cached`."""
    batch, heads, length, width = cached.shape
    buffer = cached.new_empty(batch, heads, slots, width)
    buffer[:, :, :length] = cached
    return buffer


def _copy(cache: DynamicCache, change: Callable[[torch.Tensor], torch.Tensor]) -> DynamicCache:
    """A cache with new layer objects, with `change` applied to the keys and values (B, heads, S, D)."""
    copied = copy.copy(cache)
    layers: list[Any] = [copy.copy(layer) for layer in cache.layers]
    for layer in layers:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    copied.layers = layers
    return copied
