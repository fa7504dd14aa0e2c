"""The engine that generates the macro answer and the box at the same time, as two branches of one row.

A row of the cache holds the trunk up to the image, then the rest of both conversations; the tokens of a
branch attend to the trunk and their own branch. It needs an attention implementation that takes any mask: not
FlashAttention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dualfocus_lmms.models.engines.attention import IN_PIECES
from dualfocus_lmms.models.engines.batch_rows import Row
from dualfocus_lmms.models.engines.kv_cache import SHARED, PrefixCache
from dualfocus_lmms.models.engines.shared import reserve_second_look
from dualfocus_lmms.models.engines.template import TemplateBackend
from dualfocus_lmms.types import Prompt

_MACRO, _LOCATE = SHARED + 1, SHARED + 2
_PAIR = [("macro", "image"), ("locate", "conversation")]  # what is generated at the same time
_ANY_MASK = ("sdpa", "eager", IN_PIECES)


class TreeBackend(TemplateBackend):
    """The template engine with both questions about the whole image in the same forwards."""

    def _groups(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        groups = super()._groups(prompts)
        kept = [(group[0].stage, group[0].keep) for group in groups]
        same = len({len(group) for group in groups}) == 1
        return [[*prompts]] if same and kept == _PAIR else groups

    def _generate_group(self, prompts: Sequence[Prompt]) -> list[Row]:
        if prompts[-1].stage == prompts[0].stage:
            return super()._generate_group(prompts)
        rows = self._rows(prompts)
        answering, locating = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        if self._branches(answering, locating):
            self._generate_both(answering, locating)
        else:
            self._generate_rows(answering, keep="image")
            self._generate_rows(locating, keep="conversation")
        return rows

    def _branches(self, answering: Sequence[Row], locating: Sequence[Row]) -> bool:
        """Whether the attention takes any mask, and both conversations of a row begin with the same trunk."""
        return self._attention in _ANY_MASK and all(
            one.trunk > 0 and one.key[: one.trunk] == other.key[: other.trunk]
            for one, other in zip(answering, locating, strict=True)
        )

    def _generate_both(self, answering: Sequence[Row], locating: Sequence[Row]) -> None:
        """Fill the rows of both branches, and keep the second one's conversations."""
        state = self._prefix(answering)
        reserve_second_look(state, locating)
        branches = {_MACRO: answering, _LOCATE: locating}
        self._decode(branches, state, self._prefill(branches, state))
        kept = (state.branch_ids == SHARED) | (state.branch_ids == _LOCATE)
        self._kept.append(PrefixCache(state.cache, kept * SHARED, [row.cached_key for row in locating]))

    def _mask(self, state: PrefixCache, new: torch.Tensor) -> torch.Tensor | None:
        """For columns of branches (B, 1, S, slots): True, or 0 to be added, for what is visible."""
        if int(new.max()) <= SHARED:
            return super()._mask(state, new)
        visible = state.visible_to(new)[:, None]
        if self._attention == "sdpa":
            return visible
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=visible.device)
        return mask.masked_fill(~visible, torch.finfo(mask.dtype).min)
