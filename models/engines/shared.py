"""The shared-prefix engine: every image encoded once, the KV cache of common prefixes reused.

Rows are ragged. Each is padded on the right wherever lengths differ, the holes are masked, and positions are
explicit, so that a row's tokens attend to exactly what they would attend to alone. Log-probabilities are
taken while decoding, from raw logits in float32. Equal to `naive.NaiveBackend` in float32
(tests/models/engines/test_engines.py).

A row may have a draft (`drafts.Draft`). Its tokens go through the same forward as the token before them and
are accepted as far as the model's argmax agrees; the slots of the others become holes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.compatibility import cache_argument
from dualfocus_lmms.models.engines.attention import IN_PIECES, divide_long_queries, steady_attention
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.engines.batch_rows import Branches, InputBlock, Row
from dualfocus_lmms.models.engines.decoding_graphs import DecodingGraphs
from dualfocus_lmms.models.engines.drafts import Draft
from dualfocus_lmms.models.engines.image_encoding import ImageEncoder
from dualfocus_lmms.models.engines.kv_cache import (
    SHARED,
    PrefixCache,
    empty,
    image_ids,
    match_prefixes,
    take_rows,
)
from dualfocus_lmms.models.engines.shareable import check_shareable, language_model
from dualfocus_lmms.types import Answer, Keep, Prompt, Stage, Usage


class SharedBackend(ModelBackend):
    """Batched greedy decoding over shared prefixes. A prefix is kept until extended or forgotten."""

    def __init__(self, checkpoint: Checkpoint, cuda_graphs: bool = False) -> None:
        super().__init__(checkpoint)
        check_shareable(checkpoint)
        self._language_model: Any = language_model(self.model)
        divide_long_queries(self._language_model)
        self._cache_argument = cache_argument(self._language_model.forward)
        self._images = ImageEncoder(self)
        self._embed = self.model.get_input_embeddings()
        self._head = self.model.get_output_embeddings()
        self._suppressed = torch.tensor([self.image_token_id], device=self.model.device)
        self._kept: list[PrefixCache] = []
        self.graphs: DecodingGraphs | None = None
        if cuda_graphs:
            self._check_graphs()
            self.graphs = DecodingGraphs(self._hidden, record=self.model.device.type == "cuda")

    def _check_graphs(self) -> None:
        """UserError where decoding steps cannot be CUDA graphs."""
        devices = set(getattr(self.model, "hf_device_map", {}).values())
        if len(devices) > 1:
            raise UserError("cuda_graphs needs the model on one GPU: leave device_map out.")
        if self._attention not in ("sdpa", IN_PIECES):
            raise UserError(f"cuda_graphs needs attn_implementation=sdpa, got {self._attention!r}.")

    def forget(self, but: Sequence[Image.Image] = ()) -> None:
        tokens = self._images.keep(but)
        parts = []
        for part in self._kept:
            lost = [row for row, key in enumerate(part.keys) if not set() < image_ids(key) <= tokens]
            if len(lost) < len(part.keys):
                parts.append(part.without(lost))
        self._kept = parts

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        encoded = self._images.get(image)
        return super().input_size(image) if encoded is None else encoded.prepared.input_size

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        answers: list[Answer] = []
        for group in self._groups(prompts):
            started = time.perf_counter()
            rows = self._generate_group(group)
            seconds = (time.perf_counter() - started) / len(rows)
            for prompt, row in zip(group, rows, strict=True):
                answers.append(self._answer(prompt.stage, row, seconds))
        return answers

    def _groups(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        """The prompts that are computed together: those of one stage."""
        return [list(group) for _, group in groupby(prompts, lambda prompt: (prompt.stage, prompt.keep))]

    def _generate_group(self, prompts: Sequence[Prompt]) -> list[Row]:
        """The finished rows of prompts that are computed together."""
        rows = self._rows(prompts)
        self._generate_rows(rows, prompts[0].keep)
        return rows

    def _generate_rows(self, rows: Sequence[Row], keep: Keep | None) -> None:
        """Fill the rows' tokens and log-probabilities, and keep what later calls will extend."""
        state = self._prefix(rows)
        if keep == "conversation":
            reserve_second_look(state, rows)
        self._decode({SHARED: rows}, state, self._prefill({SHARED: rows}, state, keep))
        if keep == "conversation":
            self._kept.append(PrefixCache(state.cache, state.branch_ids, [row.cached_key for row in rows]))

    def _draft(self, prompt: Prompt) -> Draft:
        """The draft of a reply: none in this engine."""
        return Draft()

    def _rows(self, prompts: Sequence[Prompt]) -> list[Row]:
        new_encodes = self._images.encode([prompt.conversation for prompt in prompts])
        rows = []
        for prompt, encodes in zip(prompts, new_encodes, strict=True):
            rendered = self.renderer.render(
                prompt.conversation, lambda image: self._images[image].prepared.ids
            )
            self.warn_too_long(len(rendered.ids))
            self.check_length(len(rendered.ids) + prompt.limits.max_new_tokens)
            key, positions = self._images.key(rendered), self._images.positions(rendered)
            rows.append(Row(rendered, key, positions, prompt.limits, encodes, self._draft(prompt)))
        return rows

    def _prefix(self, rows: Sequence[Row]) -> PrefixCache:
        """The prefixes that the rows extend: those kept, else what several rows begin with up to an image."""
        keys = [row.key for row in rows]
        index = match_prefixes(keys, [prefix for part in self._kept for prefix in part.keys])
        if index:
            state, self._kept = take_rows(self._kept, index)
        else:
            trunks = self._trunks(rows)
            state = trunks.select(match_prefixes(keys, trunks.keys))
        for row, prefix in zip(rows, state.keys, strict=True):
            row.cached = len(prefix)
        return state

    def _trunks(self, rows: Sequence[Row]) -> PrefixCache:
        """The rows' beginnings up to the first image, each computed once however many rows share it; an empty
        cache where no two rows share one, so that no forward is spent on it."""
        config = self.model.config.get_text_config()
        firsts = {row.key[: row.trunk]: row for row in reversed(rows)}
        if len(firsts) == len(rows) or () in firsts:
            return empty(config, len(rows), self.model.device)
        owners = list(firsts.values())
        state = empty(config, len(owners), self.model.device)
        self._read([InputBlock.of(owners, [row.rendered.ids[: row.trunk] for row in owners], SHARED)], state)
        return PrefixCache(state.cache, state.branch_ids, list(firsts))

    def _prefill(
        self, branches: Branches, state: PrefixCache, keep: Keep | None = None
    ) -> list[torch.Tensor]:
        """Compute what is not cached yet, in one forward. Of each branch the logits (B, 1 + drafted, V).

        With keep="image" the tokens up to each row's first image have columns of their own, so that this part
        of the cache can be kept as a view; and where there are branches, so that all begin with it.
        """
        first = next(iter(branches.values()))
        apart = keep == "image" or len(branches) > 1
        ends = [max(row.trunk, row.cached) if apart else row.cached for row in first]
        heads = [row.rendered.ids[row.cached : end] for row, end in zip(first, ends, strict=True)]
        blocks = [InputBlock.of(first, heads, SHARED)]
        for branch_id, rows in branches.items():
            for row, end in zip(rows, ends, strict=True):
                row.cached = end
                row.propose()
            blocks.append(
                InputBlock.of(
                    rows, [(*row.rendered.ids[row.cached :], *row.draft_tokens) for row in rows], branch_id
                )
            )
        hidden = self._read(blocks, state)
        if keep == "image":
            length = state.branch_ids.shape[1] - hidden[-1].shape[1]
            keys = [row.key[:end] for row, end in zip(first, ends, strict=True)]
            self._kept.append(state.cut(length, keys))
        return self._logits(blocks[1:], hidden[1:])

    def _decode(self, branches: Branches, state: PrefixCache, logits: Sequence[torch.Tensor]) -> None:
        """Greedy decoding until every row is done; fills the rows' tokens and log-probabilities."""
        with self.graphs.over(state) if self.graphs else nullcontext():
            self._take_steps(branches, state, logits)

    def _take_steps(self, branches: Branches, state: PrefixCache, logits: Sequence[torch.Tensor]) -> None:
        while True:
            for (branch_id, rows), scores in zip(branches.items(), logits, strict=True):
                self._choose(rows, branch_id, state, scores)
            branches = {
                branch_id: rows for branch_id, rows in branches.items() if not all(row.done for row in rows)
            }
            if not branches:
                return
            blocks = [self._next_block(rows, branch_id) for branch_id, rows in branches.items()]
            logits = self._logits(blocks, self._read(blocks, state))

    def _next_block(self, rows: Sequence[Row], branch_id: int) -> InputBlock:
        """The columns with each unfinished row's last token and the draft tokens after it."""
        for row in rows:
            row.propose()
        return InputBlock.of(
            rows, [() if row.done else (row.tokens[-1], *row.draft_tokens) for row in rows], branch_id
        )

    def _choose(self, rows: Sequence[Row], branch_id: int, state: PrefixCache, logits: torch.Tensor) -> None:
        """Give each row the argmax of its logits (B, 1 + drafted, V) as far as it agrees with the draft, and
        drop the other draft tokens from the cache."""
        scores = logits.float().log_softmax(-1)
        allowed = scores.index_fill(-1, self._suppressed.to(scores.device), -math.inf)
        chosen = allowed.argmax(-1)  # (B, 1 + drafted)
        logprobs = scores.gather(-1, chosen[:, :, None])[:, :, 0]
        for number, (row, *choices) in enumerate(zip(rows, chosen.tolist(), logprobs.tolist(), strict=True)):
            rejected = 0 if row.done else self._verify(row, *choices)
            if rejected:
                row.cached -= rejected
                state.drop(number, rejected, branch_id)

    def _verify(self, row: Row, chosen: Sequence[int], logprobs: Sequence[float]) -> int:
        """Accept the model's tokens up to the first that differs from the draft; the number of draft tokens
        that are rejected. Draft 5 6 7, chosen 5 6 9 4: accepts 5 6 9 and rejects one."""
        correct = 0
        for drafted, token, logprob in zip((*row.draft_tokens, None), chosen, logprobs, strict=False):
            self._accept(row, token, logprob)
            correct += token == drafted and not row.ended
            if token != drafted or row.done:
                break
        rejected = len(row.draft_tokens) - correct
        if row.past_gap and rejected:
            row.lookahead = chosen[len(row.draft_tokens)]
        return rejected

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

    def _read(self, blocks: Sequence[InputBlock], state: PrefixCache) -> tuple[torch.Tensor, ...]:
        """Hidden states (B, S, D) of each block of columns, all from one forward."""
        device = self.model.device
        ids = torch.cat([block.ids for block in blocks], dim=1).to(device)  # (B, S)
        positions = torch.cat([block.positions for block in blocks], dim=2).to(device)
        encoded = [
            self._images[image]
            for images in zip(*(block.images for block in blocks), strict=True)
            for part in images
            for image in part
        ]
        embeddings = self._embed(ids.clamp(min=0)).to(device)  # (B, S, D)
        extra: dict[str, Any] = {}
        if encoded:
            is_image = ids == self.image_token_id
            features = torch.cat([one.features for one in encoded])
            embeddings[is_image] = features.to(embeddings.device, embeddings.dtype)
            deepstack = [torch.cat(layer) for layer in zip(*(one.deepstack for one in encoded), strict=True)]
            if deepstack:
                extra = {"visual_pos_masks": is_image, "deepstack_visual_embeds": deepstack}
        branch_ids = torch.cat([block.branch_ids for block in blocks], dim=1)
        hidden = self._forward(embeddings, branch_ids, positions, state, **extra)
        return hidden.split([block.ids.shape[1] for block in blocks], dim=1)

    def _logits(self, blocks: Sequence[InputBlock], hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of each block the logits (B, 1 + drafted, V) after each row's last token before its draft tokens,
        and after each of these."""
        rows = torch.arange(len(blocks[0].rows))[:, None]
        return [
            self._head(states[rows.to(states.device), block.ends().to(states.device)])
            for block, states in zip(blocks, hidden, strict=True)
        ]

    def _forward(
        self,
        embeddings: torch.Tensor,
        branch_ids: torch.Tensor,
        positions: torch.Tensor,
        state: PrefixCache,
        **extra: Any,
    ) -> torch.Tensor:
        """Hidden states (B, S, D) of new columns; extends the state's cache and branch_ids."""
        state.branch_ids = torch.cat([state.branch_ids, branch_ids.to(state.branch_ids.device)], dim=1)
        self.counts.forwards += 1
        self.counts.tokens += int((branch_ids > 0).sum())
        if self.graphs and self.graphs.takes(state):
            return self.graphs.step(embeddings, state.visible_to(branch_ids), positions, state)
        return self._hidden(embeddings, self._mask(state, branch_ids), positions, state.cache, **extra)

    def _hidden(
        self,
        embeddings: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: DynamicCache,
        **extra: Any,
    ) -> torch.Tensor:
        """The language model's last hidden states (B, S, D); extends the cache."""
        with steady_attention(self.model.device):
            output = self._language_model(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=positions if len(positions) > 1 else positions[0],
                use_cache=True,
                **{self._cache_argument: cache},
                **extra,
            )
        return output.last_hidden_state

    def _mask(self, state: PrefixCache, new: torch.Tensor) -> torch.Tensor | None:
        """The attention mask (B, slots) for new columns of branch_ids (B, S): 0 for a hole; None where no
        token follows a hole."""
        valid = state.branch_ids > 0
        return valid.long() if bool((~valid[:, :-1] & valid[:, 1:]).any()) else None

    @property
    def _attention(self) -> str:
        return self._language_model.config._attn_implementation

    def _answer(self, stage: Stage, row: Row, seconds: float) -> Answer:
        usage = Usage(row.computed, row.encodes, seconds)
        return self.answer(stage, row.tokens, row.logprobs, row.ended, row.limits, usage)


def reserve_second_look(state: PrefixCache, rows: Sequence[Row]) -> None:
    """Reserve slots for what will extend these conversations: once more an image and a question."""
    state.reserve(max(len(row.key) for row in rows))
