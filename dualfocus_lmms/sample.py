"""A question on its way through the flow: what was located, what is looked at, what was answered."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from PIL import Image

from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.boxes import Box
from dualfocus_lmms.types import Answer, Fallback, JointScores, Question, StopCriteria
from dualfocus_lmms.zoom import Rectangle


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """What is looked at again: crops in pixels of the original, and their images, enlarged (eq. 3).

    One of each, or several with regions=separate. reply: to Q1, as the conversation has it: the model's, or
    the text of boxes that are not the model's.
    """

    crops: tuple[Rectangle, ...]
    images: tuple[Image.Image, ...]
    reply: Answer | str


@dataclass(eq=False, slots=True)
class Sample:
    """A question with its results so far: at first the macro answer alone.

    boxes: what was located, one without regions=separate. attention: the map that it was chosen from, where
    that is kept. shifted: where that was moved to. outcome: the region, or why there is none; None as long as
    a second look is needed and nothing is located.

    A further look is a sample of its own: the question about the crop of the one before it, whose micro
    answer is its macro answer. Its boxes are fractions of the original image all the same. further: those
    after the first look, in the first one's sample.
    """

    question: Question
    limits: StopCriteria
    macro: Answer
    locate: Answer | None = None
    boxes: tuple[Box, ...] = ()
    attention: AttentionMap | None = None
    shifted: Box | None = None
    outcome: Region | Fallback | None = None
    micro: Answer | None = None
    judged: JointScores | None = None
    before: Sample | None = None
    further: list[Sample] = field(default_factory=list)

    @property
    def original(self) -> Image.Image:
        """The image of the first look."""
        return self.question.image if self.before is None else self.before.original

    @property
    def looks(self) -> list[Sample]:
        """All looks, the first one first."""
        return [self, *self.further]

    @property
    def region(self) -> Region:
        """What is looked at again. ValueError where nothing is."""
        if not isinstance(self.outcome, Region):
            raise ValueError(f"Nothing is looked at again: {self.outcome}.")
        return self.outcome

    def best(self, count_eos: bool) -> Sample:
        """The look whose answer has the lowest perplexity, of equal ones the last; the first without any."""
        answered = [
            (look.micro.nll(count_eos), -number) for number, look in enumerate(self.looks) if look.micro
        ]
        return self.looks[-min(answered)[1]] if answered else self

    def further_look(self) -> Sample:
        """The next look: the same question about the crop of this one."""
        if self.micro is None:
            raise ValueError("A further look needs the answer of the one before it.")
        question = replace(self.question, image=self.region.images[0], image_hash=None)
        return Sample(question, self.limits, macro=self.micro, before=self)

    @property
    def box(self) -> Box | None:
        """The one around all that was located."""
        return Box.around(self.boxes) if self.boxes else None

    @property
    def done(self) -> bool:
        return isinstance(self.outcome, Fallback)
