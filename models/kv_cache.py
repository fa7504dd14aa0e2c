"""The KV cache of a batch of ragged rows: what is held of each, where its holes are, and how it is forked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_ROOM = 64  # slots that a layer of the cache allocates beyond what it holds, if nothing else is reserved

# What a row of the cache holds: its token ids, a negative number for each token of a picture, its own.
Key = tuple[int, ...]


TRUNK = 1  # the mark of a token that every later one sees


@dataclass(slots=True)
class Kept:
    """B cached prefixes. marks (B, S): 0 where a slot of the cache is a hole, TRUNK where it holds a token of
    that row, and more where only the row's branch of that number sees the token."""

    cache: DynamicCache
    marks: torch.Tensor
    keys: list[Key]

    def drop(self, row: int, count: int, mark: int = TRUNK) -> None:
        """Make holes of the last `count` tokens of a row, or of its branch `mark`."""
        slots = (self.marks[row] == mark).nonzero()[-count:, 0]
        self.marks[row, slots] = 0

    def reserve(self, slots: int) -> None:
        """Room for as many slots behind those of the next forward, so that no later one copies the cache."""
        for layer in self.cache.layers:
            if isinstance(layer, RoomyLayer):
                layer.spare = slots + _ROOM

    def select(self, index: list[int]) -> Kept:
        """The rows `index`; this very batch when that is all of them in order."""
        if index == list(range(len(self.keys))):
            return self
        rows = torch.tensor(index, device=self.marks.device)
        cache = _copy(self.cache, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))
        return Kept(cache, self.marks.index_select(0, rows), [self.keys[position] for position in index])

    def without(self, index: Collection[int]) -> Kept:
        """All rows but `index`."""
        return self.select([row for row in range(len(self.keys)) if row not in index])

    def cut(self, length: int, keys: list[Key]) -> Kept:
        """The first `length` slots, as views: no slot that holds a token is written again."""
        return Kept(_copy(self.cache, lambda tensor: tensor[:, :, :length]), self.marks[:, :length], keys)


def empty(config: Any, rows: int, device: torch.device) -> Kept:
    """An empty cache for a text model's configuration; only the layers that keep every token have room."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return Kept(cache, torch.zeros(rows, 0, dtype=torch.long, device=device), [()] * rows)


def joined(parts: Sequence[Kept]) -> Kept:
    """The rows of one or more batches as one batch; the shorter ones end with holes."""
    if len(parts) == 1:
        return parts[0]
    slots = max(part.marks.shape[1] for part in parts)
    cache = copy.copy(parts[0].cache)
    layers: list[Any] = [copy.copy(layer) for layer in cache.layers]
    for number, layer in enumerate(layers):
        held: list[Any] = [part.cache.layers[number] for part in parts]
        layer.keys = torch.cat([pad(one.keys, (0, 0, 0, slots - one.keys.shape[2])) for one in held])
        layer.values = torch.cat([pad(one.values, (0, 0, 0, slots - one.values.shape[2])) for one in held])
    cache.layers = layers
    marks = torch.cat([pad(part.marks, (0, slots - part.marks.shape[1])) for part in parts])
    return Kept(cache, marks, [key for part in parts for key in part.keys])


def taken(parts: Sequence[Kept], index: Sequence[int]) -> tuple[Kept, list[Kept]]:
    """The rows `index` of several batches, counted through, as one batch, and the batches without them."""
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
    return joined(chosen).select([order.index(number) for number in index]), rest


def extended(keys: Sequence[Key], prefixes: Sequence[Key]) -> list[int]:
    """Which prefix each key properly extends: the longest, one that no other key has if there are several.
    Empty when a key extends none."""
    index: list[int] = []
    for key in keys:
        fitting = [number for number, prefix in enumerate(prefixes) if _extends(key, prefix)]
        if not fitting:
            return []
        index.append(max(fitting, key=lambda number: (len(prefixes[number]), number not in index)))
    return index


def shown(key: Key) -> set[int]:
    """What stands for its pictures."""
    return {token for token in key if token < 0}


def _extends(key: Key, prefix: Key) -> bool:
    return len(prefix) < len(key) and key[: len(prefix)] == prefix


class RoomyLayer(DynamicLayer):
    """A layer of the cache with room at its end, so that decoding a token does not copy all those before it.

    A slot is written once. Views of what is held stay true, and a copy of the layer begins without the room.
    """

    keys: torch.Tensor
    values: torch.Tensor
    spare: int = _ROOM  # slots to allocate beyond what is held
    _room: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values (B, heads, S + room, D)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        held, length = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._room is None or self._room[0].shape[2] < length:
            slots, self.spare = length + self.spare, _ROOM
            self._room = _roomy(self.keys, slots), _roomy(self.values, slots)
        self._room[0][:, :, held:length] = key_states
        self._room[1][:, :, held:length] = value_states
        self.keys, self.values = self._room[0][:, :, :length], self._room[1][:, :, :length]
        return self.keys, self.values

    def __copy__(self) -> RoomyLayer:
        copied = type(self)()
        copied.__dict__.update(self.__dict__, _room=None)
        return copied


def _roomy(held: torch.Tensor, slots: int) -> torch.Tensor:
    """A tensor of `slots` slots (B, heads, slots, D) that begins with `held`."""
    batch, heads, length, width = held.shape
    room = held.new_empty(batch, heads, slots, width)
    room[:, :, :length] = held
    return room


def _copy(cache: DynamicCache, change: Callable[[torch.Tensor], torch.Tensor]) -> DynamicCache:
    """A cache with layer objects of its own, holding `change` of the keys and values (B, heads, S, D)."""
    copied = copy.copy(cache)
    layers: list[Any] = [copy.copy(layer) for layer in cache.layers]
    for layer in layers:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    copied.layers = layers
    return copied
