"""The shared-prefix engine: one batch, every picture encoded once, the KV cache of what was read reused.

Rows are ragged. Each is padded on the right wherever lengths differ, the holes are masked, and positions are
explicit, so that a row's tokens see exactly what they would see alone. Log-probabilities are taken while
decoding, from raw logits in float32. Equal to `naive.NaiveBackend` in float32 (tests/models/test_engines.py).

A row may have a draft (`drafts.Draft`). The tokens it expects are read in the same forward as the token
before them and count only as far as the model chooses the same; the slots of the others become holes.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.attention import divide_long_queries
from dualfocus_lmms.models.backend import ModelBackend
from dualfocus_lmms.models.compatibility import cache_argument
from dualfocus_lmms.models.drafts import Draft
from dualfocus_lmms.models.kv_cache import (
    TRUNK,
    Kept,
    Key,
    empty,
    extended,
    shown,
    taken,
)
from dualfocus_lmms.models.loading import Checkpoint
from dualfocus_lmms.models.pictures import Picture, as_patch
from dualfocus_lmms.models.rendering import Rendered
from dualfocus_lmms.models.rows import Block, Branches, Row
from dualfocus_lmms.types import Answer, Keep, Limits, Stage, Usage


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """A picture that went through the encoder. features: one of size D for each of its tokens, (n, D).

    token: what stands for it in a `Key`. deep: for Qwen3-VL, features (n, D) that the first layers of the
    language model add, one tensor a layer. image: kept, so that its id stays taken.
    """

    token: int
    image: Image.Image
    picture: Picture
    features: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()


class SharedBackend(ModelBackend):
    """Batched greedy decoding over shared prefixes. A prefix is kept until it is extended or forgotten."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        check_shareable(checkpoint)
        self._language_model = self.model.model.language_model
        divide_long_queries(self._language_model)
        self._cache_argument = cache_argument(self._language_model.forward)
        self._encoder = self.model.model if hasattr(self.model.model, "get_image_features") else self.model
        self._encoder_takes = inspect.signature(self._encoder.get_image_features).parameters
        self._embed = self.model.get_input_embeddings()
        self._head = self.model.get_output_embeddings()
        self._unspeakable = torch.tensor([self.image_token_id], device=self.model.device)
        self._kept: list[Kept] = []
        self._seen: dict[int, Seen] = {}  # by id(image)
        self._tokens = count(-1, -1)

    def forget(self, but: Sequence[Image.Image] = ()) -> None:
        self._seen = {id(image): self._seen[id(image)] for image in but if id(image) in self._seen}
        pictures = {seen.token for seen in self._seen.values()}
        parts = []
        for part in self._kept:
            lost = [row for row, key in enumerate(part.keys) if not set() < shown(key) <= pictures]
            if len(lost) < len(part.keys):
                parts.append(part.without(lost))
        self._kept = parts

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        seen = self._seen.get(id(image))
        return super().input_size(image) if seen is None else seen.picture.input_size

    @torch.inference_mode()
    def generate(
        self,
        stage: Stage,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
        keep: Keep | None = None,
        drafts: Sequence[Sequence[int]] | None = None,
    ) -> list[Answer]:
        started = time.perf_counter()
        rows = self._rows(conversations, limits)
        for row, draft in zip(rows, self._drafts(stage, len(rows), drafts), strict=True):
            row.draft = draft
        self._say(rows, keep)
        seconds = (time.perf_counter() - started) / len(rows)
        return [self._answer(stage, row, seconds) for row in rows]

    def _say(self, rows: Sequence[Row], keep: Keep | None) -> None:
        """Fill the rows' tokens and log-probabilities, and keep what later calls will extend."""
        state = self._prefix(rows)
        if keep == "conversation":
            reserve_second_look(state, rows)
        self._decode({TRUNK: rows}, state, self._prefill({TRUNK: rows}, state, keep))
        if keep == "conversation":
            self._kept.append(Kept(state.cache, state.marks, [row.reached for row in rows]))

    def _drafts(self, stage: Stage, rows: int, given: Sequence[Sequence[int]] | None) -> list[Draft]:
        """The draft of each row's reply: none in this engine."""
        return [Draft()] * rows

    def _rows(self, conversations: Sequence[Conversation], limits: Sequence[Limits]) -> list[Row]:
        patches = {id(patch) for conversation in conversations for patch in conversation.patches}
        encodes = self._encode([conversation.images for conversation in conversations], patches)
        rows = []
        for conversation, limit, encoded in zip(conversations, limits, encodes, strict=True):
            rendered = self.renderer.render(conversation, lambda image: self._seen[id(image)].picture.ids)
            self.warn_beyond(len(rendered.ids))
            rows.append(Row(rendered, self._key(rendered), self._positions(rendered), limit, encoded))
        return rows

    def _encode(self, pictures: Sequence[tuple[Image.Image, ...]], patches: Collection[int]) -> list[int]:
        """Run the pictures not seen since `forget` through the encoder; how many of them each row brought."""
        new: dict[int, Image.Image] = {}
        brought = []
        for images in pictures:
            before = len(new)
            new |= {id(image): image for image in images if id(image) not in self._seen}
            brought.append(len(new) - before)
        if new:
            self._see(list(new.values()), patches)
        return brought

    def _see(self, images: Sequence[Image.Image], patches: Collection[int]) -> None:
        """Encode pictures and keep their features; of one whose id is in `patches` only its whole view's."""
        pictures = self.pictures(images)
        lengths = [picture.ids.count(self.image_token_id) for picture in pictures]
        given = self.encoder_input(pictures)
        known = {name: value for name, value in given.items() if name in self._encoder_takes}
        output = self._encoder.get_image_features(**known, return_dict=True)
        features = _flat(output.pooler_output).split(lengths)
        layers = [_flat(layer).split(lengths) for layer in getattr(output, "deepstack_features", None) or ()]
        deep = list(zip(*layers, strict=True)) if layers else [()] * len(images)
        for image, picture, feature, layer in zip(images, pictures, features, deep, strict=True):
            if id(image) in patches:
                picture = as_patch(picture, self.image_token_id, self.model.config)
            kept = feature[: picture.ids.count(self.image_token_id)]
            self._seen[id(image)] = Seen(next(self._tokens), image, picture, kept, layer)
        self.counts.encodes += len(images)

    def _key(self, rendered: Rendered) -> Key:
        key = list(rendered.ids)
        for image, (start, length) in zip(rendered.images, rendered.spans, strict=True):
            key[start : start + length] = [self._seen[id(image)].token] * length
        return tuple(key)

    def _positions(self, rendered: Rendered) -> torch.Tensor:
        """Positions (axes, L): one axis, or three where a picture's tokens are placed in time, height and
        width. Always of the whole prompt, so that a second picture stands where it would without a cache."""
        if not hasattr(self.model.model, "get_rope_index"):
            return torch.arange(len(rendered.ids))[None]
        ids = torch.tensor([rendered.ids])
        pictures = [self._seen[id(image)].picture for image in rendered.images]
        grids = torch.cat([picture.inputs["image_grid_thw"] for picture in pictures]) if pictures else None
        types = (ids == self.image_token_id).int()
        positions, _ = self.model.model.get_rope_index(ids, types, image_grid_thw=grids)  # (3, 1, L)
        return positions[:, 0]

    def _prefix(self, rows: Sequence[Row]) -> Kept:
        """The prefixes that the rows extend: those kept, else the pictures that open several rows."""
        keys = [row.key for row in rows]
        index = extended(keys, [prefix for part in self._kept for prefix in part.keys])
        if index:
            state, self._kept = taken(self._kept, index)
        else:
            trunks = self._trunks(rows)
            state = trunks.select(extended(keys, trunks.keys))
        for row, prefix in zip(rows, state.keys, strict=True):
            row.held = len(prefix)
        return state

    def _trunks(self, rows: Sequence[Row]) -> Kept:
        """What opens the rows up to the first picture, read once however many rows it opens; an empty cache
        where every row opens in its own way, so that no forward is spent on it."""
        config = self.model.config.get_text_config()
        firsts = {row.key[: row.trunk]: row for row in reversed(rows)}
        if len(firsts) == len(rows) or () in firsts:
            return empty(config, len(rows), self.model.device)
        readers = list(firsts.values())
        state = empty(config, len(readers), self.model.device)
        self._read([Block.of(readers, [row.rendered.ids[: row.trunk] for row in readers], TRUNK)], state)
        return Kept(state.cache, state.marks, list(firsts))

    def _prefill(self, branches: Branches, state: Kept, keep: Keep | None = None) -> list[torch.Tensor]:
        """Read what is not cached yet, in one forward. Of each branch the logits (B, 1 + guesses, V).

        With keep="image" the tokens up to each row's first picture stand in columns of their own, so that
        this part of the cache can be kept as a view; and where there are branches, so that all begin with it.
        """
        first = next(iter(branches.values()))
        apart = keep == "image" or len(branches) > 1
        ends = [max(row.trunk, row.held) if apart else row.held for row in first]
        heads = [row.rendered.ids[row.held : end] for row, end in zip(first, ends, strict=True)]
        blocks = [Block.of(first, heads, TRUNK)]
        for mark, rows in branches.items():
            for row, end in zip(rows, ends, strict=True):
                row.held = end
                row.guess()
            blocks.append(
                Block.of(rows, [(*row.rendered.ids[row.held :], *row.guesses) for row in rows], mark)
            )
        hidden = self._read(blocks, state)
        if keep == "image":
            length = state.marks.shape[1] - hidden[-1].shape[1]
            keys = [row.key[:end] for row, end in zip(first, ends, strict=True)]
            self._kept.append(state.cut(length, keys))
        return self._logits(blocks[1:], hidden[1:])

    def _decode(self, branches: Branches, state: Kept, logits: Sequence[torch.Tensor]) -> None:
        """Greedy decoding until every row is done; fills the rows' tokens and log-probabilities."""
        while True:
            for (mark, rows), scores in zip(branches.items(), logits, strict=True):
                self._choose(rows, mark, state, scores)
            branches = {mark: rows for mark, rows in branches.items() if not all(row.done for row in rows)}
            if not branches:
                return
            blocks = [self._following(rows, mark) for mark, rows in branches.items()]
            logits = self._logits(blocks, self._read(blocks, state))

    def _following(self, rows: Sequence[Row], mark: int) -> Block:
        """Of each row that is not done its last token, and what may follow it."""
        for row in rows:
            row.guess()
        return Block.of(rows, [() if row.done else (row.tokens[-1], *row.guesses) for row in rows], mark)

    def _choose(self, rows: Sequence[Row], mark: int, state: Kept, logits: torch.Tensor) -> None:
        """Give each row the model's choices (B, 1 + guesses, V) as far as they confirm what was read ahead,
        and take from the cache what they do not confirm."""
        scores = logits.float().log_softmax(-1)
        chosen = scores.index_fill(-1, self._unspeakable.to(scores.device), -math.inf).argmax(
            -1
        )  # (B, 1 + guesses)
        logprobs = scores.gather(-1, chosen[:, :, None])[:, :, 0]
        for number, (row, *said) in enumerate(zip(rows, chosen.tolist(), logprobs.tolist(), strict=True)):
            wrong = 0 if row.done else self._confirm(row, *said)
            if wrong:
                row.held -= wrong
                state.drop(number, wrong, mark)

    def _confirm(self, row: Row, chosen: Sequence[int], logprobs: Sequence[float]) -> int:
        """Accept choices up to the first that was not guessed; how many guesses it leaves unconfirmed."""
        right = 0
        for guess, token, logprob in zip((*row.guesses, None), chosen, logprobs, strict=False):
            self._accept(row, token, logprob)
            right += token == guess and not row.ended
            if token != guess or row.done:
                break
        wrong = len(row.guesses) - right
        if row.beyond and wrong:
            row.foreseen = chosen[len(row.guesses)]
        return wrong

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

    def _read(self, blocks: Sequence[Block], state: Kept) -> tuple[torch.Tensor, ...]:
        """Read blocks of columns in one forward. Hidden states (B, S, D) of each."""
        device = self.model.device
        ids = torch.cat([block.ids for block in blocks], dim=1).to(device)  # (B, S)
        positions = torch.cat([block.positions for block in blocks], dim=2).to(device)
        pictures = [
            self._seen[id(image)]
            for images in zip(*(block.images for block in blocks), strict=True)
            for part in images
            for image in part
        ]
        embeddings = self._embed(ids.clamp(min=0)).to(device)  # (B, S, D)
        extra: dict[str, Any] = {}
        if pictures:
            seen = ids == self.image_token_id
            features = torch.cat([picture.features for picture in pictures])
            embeddings[seen] = features.to(embeddings.device, embeddings.dtype)
            deep = [torch.cat(layer) for layer in zip(*(picture.deep for picture in pictures), strict=True)]
            extra = {"visual_pos_masks": seen, "deepstack_visual_embeds": deep} if deep else {}
        marks = torch.cat([block.marks for block in blocks], dim=1)
        hidden = self._forward(embeddings, marks, positions, state, **extra)
        return hidden.split([block.ids.shape[1] for block in blocks], dim=1)

    def _logits(self, blocks: Sequence[Block], hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of each block the logits (B, 1 + guesses, V) after each row's last token before its guesses, and
        after each of these."""
        rows = torch.arange(len(blocks[0].rows))[:, None]
        return [
            self._head(states[rows.to(states.device), block.ends().to(states.device)])
            for block, states in zip(blocks, hidden, strict=True)
        ]

    def _forward(
        self,
        embeddings: torch.Tensor,
        marks: torch.Tensor,
        positions: torch.Tensor,
        state: Kept,
        **extra: Any,
    ) -> torch.Tensor:
        """One call of the language model on new columns; extends the state's cache and marks. (B, S, D)."""
        state.marks = torch.cat([state.marks, marks.to(state.marks.device)], dim=1)
        output = self._language_model(
            inputs_embeds=embeddings,
            attention_mask=self._mask(state, marks),
            position_ids=positions if len(positions) > 1 else positions[0],
            use_cache=True,
            **{self._cache_argument: state.cache},
            **extra,
        )
        self.counts.forwards += 1
        self.counts.tokens += int((marks > 0).sum())
        return output.last_hidden_state

    def _mask(self, state: Kept, new: torch.Tensor) -> torch.Tensor | None:
        """What new columns with marks (B, S) attend to, as transformers takes it: all that is no hole; None
        where no token follows a hole."""
        held = state.marks > 0
        return held.long() if bool((~held[:, :-1] & held[:, 1:]).any()) else None

    def _answer(self, stage: Stage, row: Row, seconds: float) -> Answer:
        usage = Usage(row.computed, row.encodes, seconds)
        return self.answer(stage, row.tokens, row.logprobs, row.ended, row.limits, usage)


def check_shareable(checkpoint: Checkpoint) -> None:
    """UserError when this engine cannot serve a checkpoint: it needs transformers' usual parts and layers
    that keep every token."""
    model = checkpoint.model
    parts = getattr(model.model, "language_model", None), getattr(model, "get_image_features", None)
    kept = {type(layer) for layer in DynamicCache(config=model.config.get_text_config()).layers}
    if checkpoint.family.engine == "naive" or None in parts or kept - {DynamicLayer}:
        raise UserError(
            f"No engine but naive can serve {type(model).__name__} as family {checkpoint.family.name!r}: it "
            "needs a language model apart from the vision encoder whose layers all attend to every token. "
            "Give engine=naive."
        )


def reserve_second_look(state: Kept, rows: Sequence[Row]) -> None:
    """Room for what will extend these conversations: a picture and a question again."""
    state.reserve(max(len(row.key) for row in rows))


def _flat(features: Any) -> torch.Tensor:
    """Features of pictures, a tensor (..., D) or one for each picture, as (tokens, D)."""
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return torch.cat([part.flatten(0, -2) for part in parts])
