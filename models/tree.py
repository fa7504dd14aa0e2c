"""The engine that says the macro answer and the box at the same time, as two branches of one row.

A row of the cache holds the trunk up to the picture, then the rest of both conversations; the tokens of a
branch see the trunk and their own branch. It needs attention code that takes any mask, so not FlashAttention.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.attention import IN_PIECES
from dualfocus_lmms.models.kv_cache import TRUNK, Kept
from dualfocus_lmms.models.rows import Row
from dualfocus_lmms.models.shared import reserve_second_look
from dualfocus_lmms.models.template import TemplateBackend
from dualfocus_lmms.types import Answer, Limits

_MACRO, _LOCATE = TRUNK + 1, TRUNK + 2
_ANY_MASK = ("sdpa", "eager", IN_PIECES)


class TreeBackend(TemplateBackend):
    """The template engine with both questions about the whole picture in the same forwards."""

    @torch.inference_mode()
    def generate_pair(
        self,
        macros: Sequence[Conversation],
        macro_limits: Sequence[Limits],
        locates: Sequence[Conversation],
        locate_limits: Sequence[Limits],
    ) -> tuple[list[Answer], list[Answer]]:
        """See `types.Pairing`."""
        started = time.perf_counter()
        answering = self._rows(macros, macro_limits)
        locating = self._rows(locates, locate_limits)
        for row, draft in zip(locating, self._drafts("locate", len(locating), None), strict=True):
            row.draft = draft
        if self._branches(answering, locating):
            self._say_both(answering, locating)
        else:
            self._say(answering, keep="image")
            self._say(locating, keep="conversation")
        seconds = (time.perf_counter() - started) / (len(answering) + len(locating))
        return (
            [self._answer("macro", row, seconds) for row in answering],
            [self._answer("locate", row, seconds) for row in locating],
        )

    def _branches(self, answering: Sequence[Row], locating: Sequence[Row]) -> bool:
        """Whether the attention code takes any mask, and both conversations begin with the same trunk."""
        return self._attention in _ANY_MASK and all(
            one.trunk > 0 and one.key[: one.trunk] == other.key[: other.trunk]
            for one, other in zip(answering, locating, strict=True)
        )

    @property
    def _attention(self) -> str:
        return self._language_model.config._attn_implementation

    def _say_both(self, answering: Sequence[Row], locating: Sequence[Row]) -> None:
        """Fill the rows of both branches, and keep the second one's conversations."""
        state = self._prefix(answering)
        reserve_second_look(state, locating)
        branches = {_MACRO: answering, _LOCATE: locating}
        self._decode(branches, state, self._prefill(branches, state))
        kept = (state.marks == TRUNK) | (state.marks == _LOCATE)
        self._kept.append(Kept(state.cache, kept * TRUNK, [row.reached for row in locating]))

    def _mask(self, state: Kept, new: torch.Tensor) -> torch.Tensor | None:
        """For columns of branches (B, 1, S, slots): true, or 0 that is to be added, for what is seen."""
        if int(new.max()) <= TRUNK:
            return super()._mask(state, new)
        own, held = new.to(state.marks.device)[:, :, None], state.marks[:, None, :]
        # A hole sees the trunk too: attention to nothing is no number.
        seen = (held == TRUNK) | ((held == own) & (held > 0))  # (B, S, slots)
        order = torch.arange(held.shape[2], device=held.device)
        seen = (seen & (order <= order[-own.shape[1] :, None]))[:, None]
        if self._attention == "sdpa":
            return seen
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=seen.device)
        return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
