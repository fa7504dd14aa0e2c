"""The vocabulary of the flow: Question, Answer, Selection, Usage and the Backend protocol.

Boxes, conversations and traces have modules of their own. Everything here is a frozen value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Any, Literal, Protocol

from PIL import Image

from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError
from dualfocus_lmms.zoom import DynamicResolution

Stage = Literal["macro", "locate", "micro"]
Keep = Literal["image", "conversation"]
Template = Literal["auto", "family", "checkpoint"]  # whose chat template is requested


class Fallback(str, Enum):
    """Why there is no micro answer. A member is its string, in JSON and in text too."""

    NO_BOX = "no_box"  # no four numbers in the reply
    EMPTY_REGION = "empty_region"  # the box covers no pixel of the image
    SKIPPED = "skip_confidence"  # the macro answer was confident enough (appendix C)
    MACRO_ONLY = "pathway_macro"  # only the baseline was requested

    def __str__(self) -> str:
        return self.value

    def __format__(self, format_spec: str) -> str:
        return format(self.value, format_spec)


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """One question about one image.

    id: unique in its task and split. text: the bare question, as Q1 asks it (PROTOCOL: no options, no answer
    format). prompt: the task's full macro prompt. key: what a trace is found by, e.g. task, split, doc_id.
    box: the region that the data set annotates, where it does; no model receives it except with grounding
    "annotated". boxes: of the things that the question is about, where the data set has them one by one.
    short: the task's prompt for a short answer, without options, where it has one. options: the texts that
    the prompt letters A, B, ..., none where the question is open. Only the rule `release` reads these two.
    image_hash: `images.image_hash` of `image` where it is known already, so that it is computed once.
    """

    id: str
    image: Image.Image
    text: str
    prompt: str
    key: dict[str, Any] = field(default_factory=dict)
    box: Box | None = None
    short: str | None = None
    options: tuple[str, ...] = ()
    image_hash: str | None = None
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.strip() or not self.prompt.strip():
            raise UserError(f"Question {self.id!r} is empty: give a question about the image.")
        if any("\ud800" <= letter <= "\udfff" for letter in self.text + self.prompt):
            raise UserError(
                f"Question {self.id!r} has half a character, or bytes that are not UTF-8: {self.text[:80]!a}."
                " Write it as UTF-8."
            )
        if min(self.image.size) < 1:
            raise UserError(f"The image of question {self.id!r} has no pixels: {self.image.size}.")


@dataclass(frozen=True, slots=True)
class StopCriteria:
    """When a generation stops: `max_new_tokens` (at least 1, the closing token included) or a stop string,
    which is cut from the text together with all that follows it."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, Integral) or self.max_new_tokens < 1:
            raise UserError(
                f"max_new_tokens must be a whole number, 1 or more, got {self.max_new_tokens!r:.80}."
            )


@dataclass(frozen=True, slots=True)
class Usage:
    """What one sample cost in one stage.

    tokens: language-model tokens computed (cached ones cost nothing). encodes: images that went through the
    vision encoder. seconds: the batch's time shared equally among its samples.
    """

    tokens: int = 0
    encodes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities by which an answer is compared, under its own context or another.

    text: the scored text, which may be an option's instead of the answer's. logprobs: of every token that
    counts. closings: of every end-of-turn token that can count. Both in nats; there is at least one.
    """

    text: str
    logprobs: tuple[float, ...]
    closings: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.logprobs and not self.closings:
            raise ValueError("Scores need one or more log-probabilities.")

    def nll(self, count_eos: bool = False) -> float:
        """Mean negative log-likelihood in nats per token (the exponent of eq. 7).

        count_eos counts the end-of-turn tokens too. Where there is no other token, they are counted whatever
        its value.
        """
        counted = self.logprobs + self.closings if count_eos or not self.logprobs else self.logprobs
        return -sum(counted) / len(counted)


@dataclass(frozen=True, slots=True)
class JointScores:
    """What a rule that compares both answers under one context computed before it chose.

    rule: its name. winner: the pathway that wins without scores; None where the scores decide, and then
    macro and micro have them. seconds: what the scoring took, the batch's time shared equally.
    """

    rule: str
    macro: Scores | None = None
    micro: Scores | None = None
    winner: Stage | None = None
    seconds: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if (self.winner is None) is (self.macro is None or self.micro is None):
            raise ValueError("Either a pathway has won, or both answers have scores.")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model generated in one stage, with the log-probability of every token.

    text: without surrounding white space. tokens: ids of the text. logprobs: finite natural logarithms from
    the raw logits in float32, one per token, and one more for the end-of-turn token when `ended` is true.
    There is at least one. lengths: how many characters of the text each token wrote, one number per token;
    they follow from the tokens, and are None where that is not known.
    """

    pathway: Stage
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    usage: Usage = Usage()
    lengths: tuple[int, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.tokens) + self.ended:
            raise ValueError(
                f"{len(self.tokens)} tokens and ended={self.ended} need {len(self.tokens) + self.ended} "
                f"log-probabilities, got {len(self.logprobs)}."
            )
        if not self.logprobs or not all(map(math.isfinite, self.logprobs)):
            raise ValueError(f"An answer needs one or more finite log-probabilities, got {self.logprobs}.")
        if self.lengths is not None and not self._is_divided(self.lengths):
            raise ValueError(f"lengths {self.lengths} do not divide {self.text!r:.80} among its tokens.")

    def _is_divided(self, lengths: tuple[int, ...]) -> bool:
        counts = len(lengths) == len(self.tokens) and min(lengths, default=0) >= 0
        return counts and sum(lengths) <= len(self.text)

    def nll(self, count_eos: bool = False) -> float:
        """See `Scores.nll`: an answer without any token has only its end-of-turn token to count."""
        return self.scores.nll(count_eos)

    @property
    def pieces(self) -> tuple[str, ...] | None:
        """The text of each token, as far as it is in the answer's; None where `lengths` is."""
        if self.lengths is None:
            return None
        ends = accumulate(self.lengths, initial=0)
        return tuple(self.text[start:end] for start, end in pairwise(ends))

    @property
    def scores(self) -> Scores:
        """Its log-probabilities under its own pathway's context."""
        count = len(self.tokens)
        return Scores(self.text, self.logprobs[:count], self.logprobs[count:])

    def ppl(self, count_eos: bool = False) -> float:
        """Perplexity, 1 to infinity (eq. 7)."""
        nll = self.nll(count_eos)
        return math.exp(nll) if nll < 700 else math.inf

    def confidence(self, count_eos: bool = False) -> float:
        """Geometric mean of the tokens' probabilities, 0 to 1: the inverse of the perplexity."""
        return min(math.exp(-self.nll(count_eos)), 1.0)


@dataclass(frozen=True, slots=True)
class Selection:
    """The final answer: its pathway, the rule that chose it, and by how much the perplexities differ.

    margin: log PPL(micro) - log PPL(macro) in nats, of the perplexities that the rule compares; positive
    where macro is the more certain one; None when nothing was compared. compared: the logarithms of both
    (macro, micro) where a joint rule computed them; the two numbers that a calibrated rule compares, of which
    the lower wins; None where they are the log-perplexities of the answers' own pathways. margin is their
    difference, whatever they are.
    """

    pathway: Stage
    text: str
    rule: str
    margin: float | None = None
    compared: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Prompt:
    """One reply to generate.

    conversation: ends with a user turn. limits: when the reply stops. keep: what later calls will extend, the
    prefix up to the first image, the whole conversation with the reply, or nothing. draft: the tokens that
    the reply probably is, without a closing token; None leaves it to the backend. Both save work and never
    change an answer.
    """

    stage: Stage
    conversation: Conversation
    limits: StopCriteria
    keep: Keep | None = None
    draft: Sequence[int] | None = None

    @staticmethod
    def batch(
        stage: Stage,
        conversations: Sequence[Conversation],
        limits: Sequence[StopCriteria],
        keep: Keep | None = None,
        drafts: Sequence[Sequence[int] | None] | None = None,
    ) -> list[Prompt]:
        """Prompts of one stage, a row for each conversation."""
        rows = zip(conversations, limits, drafts or [None] * len(conversations), strict=True)
        return [Prompt(stage, conversation, limit, keep, draft) for conversation, limit, draft in rows]


@dataclass(frozen=True, slots=True)
class TemplateChoice:
    """Whose chat template writes the prompts.

    asked: the model argument; None where it cannot be given. used: whose it is. replaced: whether the
    family's stands in the place of one that the checkpoint brings.
    """

    asked: str | None
    used: Literal["family", "checkpoint", "server"]
    replaced: bool = False


class Backend(Protocol):
    """What the flow needs from a model. `testing.FakeBackend` is a scripted one."""

    box_format: BoxFormat
    local_patches: bool  # whether a sub-image can join the tiles of an image
    native_locate: str | None  # Q1 as the family was trained with, {question} in it; None: it has none
    resolution: DynamicResolution | None  # how it resizes images; None: its encoder or tiles have one size

    @property
    def template(self) -> TemplateChoice | None:
        """Whose chat template writes the prompts; None where nothing is known of it."""
        ...

    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Greedy continuations, one for each prompt, in order.

        The prompts of several stages may come in one call, those of a stage next to each other: the backend
        decides what it computes together. The text of an assistant turn without tokens is tokenised. Raises
        GenerationError when a logit is not a number.
        """
        ...

    def score(self, conversations: Sequence[Conversation]) -> list[list[tuple[float, ...]]]:
        """The log-probabilities of the assistant turns; each conversation ends with one.

        For each assistant turn in order, the log-probabilities of its tokens and, last, of its closing token:
        natural logarithms from the raw logits in float32, of one forward over the conversation. The text of
        a turn without tokens is tokenised. Raises GenerationError when a logit is not a
        number.
        """
        ...

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) in pixels of `image` as the model receives it. Only called for box formats whose
        frame is the resized image."""
        ...

    def forget(self, but: Sequence[Image.Image] = ()) -> None:
        """Drop whatever was kept, except, if that saves work, for conversations about the images `but`."""
        ...
