"""The shared-prefix engine: one batch, every picture encoded once, the KV cache of what was read reused.

Rows are ragged. Each is padded on the right wherever lengths differ, the holes are masked, and positions are
explicit, so that a row's tokens see exactly what they would see alone. Log-probabilities are taken while
decoding, from raw logits in float32. Equal to `naive.NaiveBackend` in float32 (tests/models/test_engines.py).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.backend import ModelBackend
from dualfocus_lmms.models.loading import Checkpoint
from dualfocus_lmms.models.rendering import Rendered
from dualfocus_lmms.types import Answer, Keep, Limits, Stage, Usage

_HOLE = -1
_ROOM = 32  # slots that a layer of the cache allocates beyond what it holds

# What a row of the cache holds: its token ids, where each token of a picture is -1 - the picture's number.
Key = tuple[int, ...]


@dataclass(slots=True)
class Kept:
    """B cached prefixes. mask (B, S) is true where a slot of the cache holds a token of that row."""

    cache: DynamicCache
    mask: torch.Tensor
    keys: list[Key]


@dataclass(slots=True)
class Row:
    """One conversation being continued."""

    rendered: Rendered
    key: Key
    limits: Limits
    encodes: int  # pictures encoded for this row
    cached: int = 0  # tokens of the prompt that were found in the cache
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False
    done: bool = False
    fed: int = 0  # generated tokens that were fed back, and so are in the cache

    @property
    def reached(self) -> Key:
        """What the row's cache holds now."""
        return self.key + tuple(self.tokens[: self.fed])


class SharedBackend(ModelBackend):
    """Batched greedy decoding over shared prefixes. It keeps at most one batch of prefixes at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._language_model = self.model.model.language_model
        self._embed = self.model.get_input_embeddings()
        self._head = self.model.get_output_embeddings()
        self._unspeakable = torch.tensor([self.image_token_id], device=self.model.device)
        self.forget()

    def forget(self) -> None:
        self._kept: Kept | None = None
        # By id(image): its number, the image itself (so that the id stays taken), its features (N, D).
        self._pictures: dict[int, tuple[int, Image.Image, torch.Tensor]] = {}

    @torch.inference_mode()
    def generate(
        self,
        stage: Stage,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
        keep: Keep | None = None,
    ) -> list[Answer]:
        started = time.perf_counter()
        rows = self._rows(conversations, limits)
        state = self._prefix(rows)
        logits = self._prefill(rows, state, keep)
        self._decode(rows, state, logits)
        if keep == "conversation":
            self._kept = Kept(state.cache, state.mask, [row.reached for row in rows])
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            self.answer(stage, row.tokens, row.logprobs, row.ended, row.limits, _usage(row, seconds))
            for row in rows
        ]

    def _rows(self, conversations: Sequence[Conversation], limits: Sequence[Limits]) -> list[Row]:
        encodes = self._encode([conversation.images for conversation in conversations])
        rows = []
        for conversation, limit, encoded in zip(conversations, limits, encodes, strict=True):
            rendered = self.renderer.render(conversation, lambda image: len(self._pictures[id(image)][2]))
            rows.append(Row(rendered, self._key(rendered), limit, encoded))
        return rows

    def _encode(self, pictures: Sequence[tuple[Image.Image, ...]]) -> list[int]:
        """Run the pictures not seen since `forget` through the encoder; how many of them each row brought."""
        new: dict[int, Image.Image] = {}
        brought = []
        for images in pictures:
            before = len(new)
            new |= {id(image): image for image in images if id(image) not in self._pictures}
            brought.append(len(new) - before)
        if new:
            pixels = self.pixels(list(new.values()))
            features = self.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
            for image, feature in zip(new.values(), features, strict=True):
                self._pictures[id(image)] = (len(self._pictures), image, feature)
            self.counts.encodes += len(new)
        return brought

    def _key(self, rendered: Rendered) -> Key:
        key = list(rendered.ids)
        for image, (start, length) in zip(rendered.images, rendered.spans, strict=True):
            key[start : start + length] = [-1 - self._pictures[id(image)][0]] * length
        return tuple(key)

    def _prefix(self, rows: Sequence[Row]) -> Kept:
        """The kept prefixes that the rows extend, or an empty cache when a row extends none of them."""
        kept, self._kept = self._kept, None
        if kept is not None:
            index = [_extended(row.key, kept.keys) for row in rows]
            if None not in index:
                for row, position in zip(rows, index, strict=True):
                    row.cached = len(kept.keys[position])  # type: ignore[index]
                return _select(kept, index)  # type: ignore[arg-type]
        empty = torch.zeros(len(rows), 0, dtype=torch.bool, device=self.model.device)
        return Kept(_empty_cache(self.model.config.get_text_config()), empty, [()] * len(rows))

    def _prefill(self, rows: Sequence[Row], state: Kept, keep: Keep | None) -> torch.Tensor:
        """Read what is not cached yet, in one forward. Logits (B, V) after each row's last token.

        With keep="image" the tokens up to each row's first picture stand in columns of their own, so that
        this part of the cache can be kept as a view.
        """
        ends = [sum(row.rendered.spans[0]) if keep == "image" else row.cached for row in rows]
        heads = _columns([row.rendered.ids[row.cached : end] for row, end in zip(rows, ends, strict=True)])
        tails = _columns([row.rendered.ids[end:] for row, end in zip(rows, ends, strict=True)])
        ids = torch.cat([heads, tails], dim=1).to(self.model.device)  # (B, S)
        valid = ids != _HOLE
        starts = torch.tensor([row.cached for row in rows], device=ids.device)
        positions = starts[:, None] + (valid.cumsum(1) - 1).clamp(min=0)
        hidden = self._forward(self._embeddings(rows, ids), valid, positions, state)  # (B, S, D)
        if keep == "image":
            length = state.mask.shape[1] - tails.shape[1]
            self._kept = _cut(state, length, [row.key[:end] for row, end in zip(rows, ends, strict=True)])
        last = (valid * torch.arange(ids.shape[1], device=ids.device)).argmax(1)  # (B,)
        return self._head(hidden[torch.arange(len(rows), device=ids.device), last])

    def _embeddings(self, rows: Sequence[Row], ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings (B, S, D): words from the table, picture tokens from the encoder."""
        embeddings = self._embed(ids.clamp(min=0))
        features = [
            self._pictures[id(image)][2]
            for row in rows
            for image, (start, _) in zip(row.rendered.images, row.rendered.spans, strict=True)
            if start >= row.cached
        ]
        if features:
            embeddings[ids == self.image_token_id] = torch.cat(features).to(embeddings.dtype)
        return embeddings

    def _decode(self, rows: Sequence[Row], state: Kept, logits: torch.Tensor) -> None:
        """Greedy decoding until every row is done; fills the rows' tokens and log-probabilities."""
        while True:
            scores = logits.float().log_softmax(-1)  # (B, V)
            chosen = scores.index_fill(-1, self._unspeakable, -math.inf).argmax(-1)  # (B,)
            logprobs = scores.gather(-1, chosen[:, None])[:, 0]
            for row, token, logprob in zip(rows, chosen.tolist(), logprobs.tolist(), strict=True):
                if not row.done:
                    self._accept(row, token, logprob)
            if all(row.done for row in rows):
                return
            active = torch.tensor([[not row.done] for row in rows], device=logits.device)  # (B, 1)
            ids = torch.tensor([[row.tokens[-1] if row.tokens else 0] for row in rows], device=logits.device)
            positions = torch.tensor([[len(row.reached)] for row in rows], device=logits.device)
            hidden = self._forward(self._embed(ids), active, positions, state)
            for row in rows:
                row.fed += not row.done
            logits = self._head(hidden[:, -1])

    def _accept(self, row: Row, token: int, logprob: float) -> None:
        row.logprobs.append(logprob)
        if token in self.eos_ids:
            row.ended = row.done = True
            return
        row.tokens.append(token)
        row.done = (
            len(row.tokens) >= row.limits.max_new_tokens
            or not math.isfinite(logprob)
            or self.stopped(row.tokens, row.limits)
        )

    def _forward(
        self, embeddings: torch.Tensor, valid: torch.Tensor, positions: torch.Tensor, state: Kept
    ) -> torch.Tensor:
        """One call of the language model on new columns; extends the state's cache and mask. (B, S, D)."""
        state.mask = torch.cat([state.mask, valid], dim=1)
        output = self._language_model(
            inputs_embeds=embeddings,
            attention_mask=state.mask.long(),
            position_ids=positions,
            past_key_values=state.cache,
            use_cache=True,
        )
        self.counts.forwards += 1
        self.counts.tokens += int(valid.sum())
        return output.last_hidden_state


def _usage(row: Row, seconds: float) -> Usage:
    return Usage(len(row.key) - row.cached + row.fed, row.encodes, seconds)


def _extended(key: Key, prefixes: Sequence[Key]) -> int | None:
    """Which prefix `key` properly extends, None when it extends none."""
    for position, prefix in enumerate(prefixes):
        if len(prefix) < len(key) and key[: len(prefix)] == prefix:
            return position
    return None


def _columns(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Ragged rows as a (B, S) tensor, filled up with holes on the right."""
    width = max(len(row) for row in rows)
    filled = [[*row, *[_HOLE] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.long).reshape(len(rows), width)


def _select(kept: Kept, index: list[int]) -> Kept:
    """The rows `index` of a kept batch; the very same tensors when that is all of them in order."""
    if index == list(range(len(kept.keys))):
        return kept
    rows = torch.tensor(index, device=kept.mask.device)
    cache = _copy(kept.cache, lambda tensor: tensor.index_select(0, rows))
    return Kept(cache, kept.mask.index_select(0, rows), [kept.keys[position] for position in index])


def _cut(state: Kept, length: int, keys: list[Key]) -> Kept:
    """The first `length` slots of a state, as views: no slot that holds a token is written again."""
    return Kept(_copy(state.cache, lambda tensor: tensor[:, :, :length]), state.mask[:, :length], keys)


class RoomyLayer(DynamicLayer):
    """A layer of the cache with room at its end, so that decoding a token does not copy all those before it.

    A slot is written once. Views of what is held stay true, and a copy of the layer begins without the room.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _room: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values (B, heads, S + room, D)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        held, length = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._room is None or self._room[0].shape[2] < length:
            self._room = _roomy(self.keys, length + _ROOM), _roomy(self.values, length + _ROOM)
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


def _empty_cache(config: Any) -> DynamicCache:
    """The cache of a text model; only the layers that keep every token have room."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _copy(cache: DynamicCache, change: Callable[[torch.Tensor], torch.Tensor]) -> DynamicCache:
    """A cache with layer objects of its own, holding `change` of the keys and values (B, heads, S, D)."""
    copied = copy.copy(cache)
    layers: list[Any] = [copy.copy(layer) for layer in cache.layers]
    for layer in layers:
        layer.keys, layer.values = change(layer.keys), change(layer.values)
    copied.layers = layers
    return copied
