"""The vocabulary of the flow: Question, Answer, Selection, Usage and the Backend protocol.

Boxes, conversations and traces have files of their own. Everything here is a frozen value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL import Image

from dualfocus_lmms.boxes import Box, BoxFormat
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import UserError

Stage = Literal["macro", "locate", "micro"]
Keep = Literal["image", "conversation"]


@dataclass(frozen=True, eq=False, slots=True)
class Question:
    """One question about one image.

    id: unique in its task and split. text: the bare question, as Q1 asks it (PROTOCOL: no options, no answer
    format). prompt: the task's full macro prompt. key: what a trace is found by, e.g. task, split, doc_id.
    box: the region that the data set annotates, where it does; no model sees it unless it is asked for.
    """

    id: str
    image: Image.Image
    text: str
    prompt: str
    key: dict[str, Any] = field(default_factory=dict)
    box: Box | None = None

    def __post_init__(self) -> None:
        if not self.text.strip() or not self.prompt.strip():
            raise UserError(f"Question {self.id!r} is empty: give a text to ask about the image.")
        if min(self.image.size) < 1:
            raise UserError(f"The image of question {self.id!r} has no pixels: {self.image.size}.")


@dataclass(frozen=True, slots=True)
class Limits:
    """When a generation stops: `max_new_tokens` (at least 1, the closing token included) or a stop string,
    which is cut from the text together with all that follows it."""

    max_new_tokens: int
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one sample cost in one stage.

    tokens: language-model tokens computed (cached ones cost nothing). encodes: pictures that went through the
    vision encoder. seconds: the batch's time shared equally among its samples.
    """

    tokens: int = 0
    encodes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said in one stage, with the log-probability of every token it chose.

    text: without surrounding white space. tokens: ids of the text. logprobs: finite natural logarithms from
    the raw logits in float32, one per token, and one more for the end-of-turn token when `ended` is true.
    There is at least one.
    """

    pathway: Stage
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool
    usage: Usage = Usage()

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.tokens) + self.ended:
            raise ValueError(
                f"{len(self.tokens)} tokens and ended={self.ended} need {len(self.tokens) + self.ended} "
                f"log-probabilities, got {len(self.logprobs)}."
            )
        if not self.logprobs or not all(math.isfinite(value) for value in self.logprobs):
            raise ValueError(f"An answer needs one or more finite log-probabilities, got {self.logprobs}.")

    def nll(self, count_eos: bool = False) -> float:
        """Mean negative log-likelihood in nats per token (the exponent of eq. 7).

        count_eos counts the end-of-turn token as one of the N tokens. An answer without any token has only
        that one, and it is counted then whatever the switch says.
        """
        counted = self.logprobs if count_eos or not self.tokens else self.logprobs[: len(self.tokens)]
        return -sum(counted) / len(counted)

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

    margin: log PPL(micro) - log PPL(macro) in nats; positive where macro is the more certain one; None when
    only one pathway was run.
    """

    pathway: Stage
    text: str
    rule: str
    margin: float | None = None


class Backend(Protocol):
    """What the flow needs from a model. `testing.FakeBackend` is a scripted one."""

    box_format: BoxFormat

    def generate(
        self,
        stage: Stage,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
        keep: Keep | None = None,
    ) -> list[Answer]:
        """Greedy continuations, one for each conversation, which must end with a user turn.

        keep says what later calls will extend: the prefix up to the first image, the whole conversation with
        the reply, or nothing. It saves work and never changes an answer. An assistant turn without tokens is
        read as if the model had said its text. Raises GenerationError when a logit is not a number.
        """
        ...

    def forget(self) -> None:
        """Drop whatever was kept."""
        ...
