"""The shared engine with drafts: a box in the family's notation, a micro answer equal to the macro answer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from dualfocus_lmms.models.engines.drafts import Draft, box_draft
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.types import Stage


class TemplateBackend(SharedBackend):
    """The shared engine with a draft for each locate reply, and for other replies the drafts that the caller
    gives. The answers are the same in fewer forwards."""

    @cached_property
    def _box(self) -> Draft:
        return box_draft(self.checkpoint.family.box_format, self.renderer.reply)

    def _drafts(self, stage: Stage, rows: int, given: Sequence[Sequence[int]] | None) -> list[Draft]:
        if given is not None:
            return [Draft((tuple(tokens),)) for tokens in given]
        return [self._box if stage == "locate" else Draft()] * rows
