"""Decoding steps as CUDA graphs: on a GPU a step of few tokens takes longer to launch than to compute.

A graph replays kernels on fixed addresses and shapes. So the cache of the rows that are being decoded is
copied into buffers of a fixed size, each step writes its columns into numbered slots of them, and a mask
tells attention which slots there are. At the end the new columns go back to the cache that they belong to.
The tokens are those of the same steps without graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dualfocus_lmms.models.engines.kv_cache import PrefixCache

_MOST_SLOTS = 1 << 13  # of all rows: larger batches gained little, and their buffers would be large
_COLUMNS = 4  # a step's columns are padded to a multiple of it, so that few shapes have to be recorded
_SLOTS = 256  # likewise the slots of a row
_WARM_UP = 2  # runs before a graph is recorded, for what libraries set up on first use

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, DynamicCache], torch.Tensor]


class FixedLayer(DynamicLayer):
    """A cache layer of a fixed size, keys and values (B, heads, slots, D): new ones go to slots `places`."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, places: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self._places = keys, values, places
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys.index_copy_(2, self._places, key_states)
        self.values.index_copy_(2, self._places, value_states)
        return self.keys, self.values


@dataclass(slots=True)
class _Step:
    """One shape of a step: its inputs at fixed addresses, and what runs it."""

    embeddings: torch.Tensor  # (B, S, D)
    visible: torch.Tensor  # (B, 1, S, slots)
    positions: torch.Tensor  # (axes, B, S)
    places: torch.Tensor  # (S,)
    run: Callable[[], torch.Tensor]  # hidden states (B, S, D)


class DecodingGraphs:
    """Steps of one batch at a time. forward: the language model on embeddings, a mask, positions and a cache.

    record: False, the choice on a CPU, runs the same steps without graphs.
    """

    def __init__(self, forward: Forward, record: bool) -> None:
        self._forward, self._record = forward, record
        self._state: PrefixCache | None = None
        self._length = 0  # slots of the state that are in the buffers
        self._buffers: list[torch.Tensor] = []  # keys and values of each layer (B, heads, slots, D)
        self._steps: dict[tuple[int, ...], _Step] = {}
        self._pool: Any = None  # graphs run one after the other, so they share their memory

    def takes(self, state: PrefixCache) -> bool:
        """Whether the next step, whose columns the state's branch_ids have already, is one of the batch in
        `over` and small enough. The cache of a batch that became too large is complete again."""
        if state is not self._state:
            return False
        if state.branch_ids.numel() <= _MOST_SLOTS:
            return True
        self._give_back(state)
        return False

    @contextmanager
    def over(self, state: PrefixCache) -> Iterator[None]:
        """The steps of a batch: its cache is complete again at the end."""
        self._state, self._length = state, 0
        try:
            yield
            self._give_back(state)
        finally:
            self._state = None

    def step(
        self, embeddings: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor, state: PrefixCache
    ) -> torch.Tensor:
        """Hidden states (B, S, D) of new columns: embeddings (B, S, D), positions (axes, B, S); visible
        (B, S, slots) says which slots each sees, the new ones being the last S."""
        columns, slots = visible.shape[1:]
        capacity = -(slots + 1) // _SLOTS * -_SLOTS
        width = -columns // _COLUMNS * -_COLUMNS
        self._load(state, slots - columns, capacity)
        key = (*embeddings.shape, width, capacity)
        step = self._steps.get(key)
        mask = pad(visible, (0, capacity - slots, 0, width - columns))
        mask[:, columns:, 0] = True  # a softmax over nothing would be NaN
        places = torch.full((width,), capacity - 1)  # of a column that fills up: a slot that no one sees
        places[:columns] = torch.arange(slots - columns, slots)
        inputs = (
            pad(embeddings, (0, 0, 0, width - columns)),
            mask[:, None],
            pad(positions, (0, width - columns)),
        )
        if step is None:
            step = self._steps[key] = self._new_step(*inputs, places.to(embeddings.device))
        step.embeddings.copy_(inputs[0])
        step.visible.copy_(inputs[1])
        step.positions.copy_(inputs[2])
        step.places.copy_(places)
        hidden = step.run()[:, :columns].clone()
        self._length = slots
        return hidden

    def _new_step(
        self, embeddings: torch.Tensor, visible: torch.Tensor, positions: torch.Tensor, places: torch.Tensor
    ) -> _Step:
        inputs = embeddings.clone(), visible.clone(), positions.clone(), places.clone()
        slots = visible.shape[-1]
        cache = DynamicCache()
        views = [buffer[:, :, :slots] for buffer in self._buffers]
        cache.layers = [
            FixedLayer(keys, values, inputs[3]) for keys, values in zip(views[::2], views[1::2], strict=True)
        ]

        def work() -> torch.Tensor:
            return self._forward(inputs[0], inputs[1], inputs[2], cache)

        return _Step(*inputs, self._recorded(work) if self._record else work)

    def _recorded(self, work: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """A replay of the kernels that `work` launches; what it returns is overwritten by the next replay."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = work()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay

    def _load(self, state: PrefixCache, length: int, capacity: int) -> None:
        """Have the first `length` slots of the state in buffers of at least `capacity` slots."""
        tensors = _tensors(state)
        rows, slots = (self._buffers[0].shape[0], self._buffers[0].shape[2]) if self._buffers else (0, 0)
        if rows != len(state.branch_ids) or slots < capacity:
            if self._length:
                self._give_back(state)
                tensors, self._length = _tensors(state), 0
            # The old ones are freed before the new ones are made; a pool without graphs cannot be used again.
            self._steps, self._buffers, self._pool = {}, [], None
            self._buffers = [
                one.new_zeros(one.shape[0], one.shape[1], capacity, one.shape[3]) for one in tensors
            ]
        if self._length < length:
            start = self._length
            if start == 0:  # what another batch left there is hidden, but 0 times NaN is NaN
                torch._foreach_zero_([buffer[:, :, length:] for buffer in self._buffers])
            torch._foreach_copy_(
                [buffer[:, :, start:length] for buffer in self._buffers],
                [tensor[:, :, start:length] for tensor in tensors],
            )
            self._length = length

    def _give_back(self, state: PrefixCache) -> None:
        """Append to the state's cache the columns that so far are only in the buffers."""
        layers: list[Any] = state.cache.layers
        for layer, keys, values in zip(layers, self._buffers[::2], self._buffers[1::2], strict=False):
            if (cached := layer.keys.shape[2]) < self._length:
                layer.update(keys[:, :, cached : self._length], values[:, :, cached : self._length])


def _tensors(state: PrefixCache) -> list[torch.Tensor]:
    """Keys and values of each layer (B, heads, S, D)."""
    layers: list[Any] = state.cache.layers
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]
