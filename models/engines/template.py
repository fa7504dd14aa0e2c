"""The shared engine with drafts: a box in the family's notation, a micro answer equal to the macro answer."""

from __future__ import annotations

from functools import cached_property

from dualfocus_lmms.models.engines.drafts import Draft, box_draft
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.types import Prompt


class TemplateBackend(SharedBackend):
    """The shared engine with a draft for each locate reply, and for other replies the drafts that the caller
    gives. The answers are the same in fewer forwards."""

    @cached_property
    def _box(self) -> Draft:
        return box_draft(self.checkpoint.family.box_format, self.renderer.reply)

    def _draft(self, prompt: Prompt) -> Draft:
        if prompt.draft is not None:
            return Draft((tuple(prompt.draft),))
        return self._box if prompt.stage == "locate" else Draft()
