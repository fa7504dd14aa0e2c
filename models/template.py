"""The shared engine with drafts: a box in its notation, a micro answer that repeats the macro one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from dualfocus_lmms.models.drafts import Draft, box_draft
from dualfocus_lmms.models.shared import SharedBackend
from dualfocus_lmms.types import Stage


class TemplateBackend(SharedBackend):
    """The shared engine with drafts: a box is expected in the family's notation, and any other reply to be
    what the caller expects. The answers are the same in fewer forwards."""

    @cached_property
    def _box(self) -> Draft:
        return box_draft(self.checkpoint.family.box_format, self.renderer.reply)

    def _drafts(self, stage: Stage, rows: int, given: Sequence[Sequence[int]] | None) -> list[Draft]:
        if given is not None:
            return [Draft((tuple(tokens),)) for tokens in given]
        return [self._box if stage == "locate" else Draft()] * rows
