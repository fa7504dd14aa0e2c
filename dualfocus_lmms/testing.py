"""A scripted model for tests of plugins: no weights, no torch. Knows the `Backend` protocol and nothing else.

backend = FakeBackend({"macro": Reply("red", (-0.9,)), "locate": "[0.10, 0.20, 0.30, 0.40]", "micro": "blue"})
traces = answer_batch(backend, [question], [StopCriteria(16)], Settings.of())
assert traces[0].selection.text == "blue"
assert [call.stage for call in backend.calls] == ["macro", "locate", "micro"]
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import get_args

from PIL import Image

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.conversation import Conversation, Turn
from dualfocus_lmms.types import Answer, Keep, Prompt, Stage, StopCriteria, Usage
from dualfocus_lmms.zoom import DynamicResolution


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of the scripted model: a text, the log-probability of each token, and that of the closing
    token; eos None is a reply that reached its limit."""

    text: str
    logprobs: tuple[float, ...] = (-0.1,)
    eos: float | None = -0.01


Script = Callable[[Stage, Conversation], "Reply | str"] | Mapping[Stage, "Reply | str"]


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """The prompts of one stage in one call of `generate`, as they arrived."""

    stage: Stage
    conversations: tuple[Conversation, ...]
    limits: tuple[StopCriteria, ...]
    keep: Keep | None

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> Call:
        """Prompts of one stage that keep the same."""
        conversations, limits = zip(
            *((prompt.conversation, prompt.limits) for prompt in prompts), strict=True
        )
        return cls(prompts[0].stage, conversations, limits, prompts[0].keep)

    @property
    def texts(self) -> list[str]:
        """Each conversation as text, see `as_text`."""
        return [as_text(conversation) for conversation in self.conversations]


def as_text(conversation: Conversation) -> str:
    """A conversation as text: "user: <image>What is it?", one line for each turn."""
    return "\n".join(f"{turn.role}: {'<image>' * len(turn.images)}{turn.text}" for turn in conversation.turns)


class FakeBackend:
    """A `Backend` that replies by script and records every call.

    script: a reply for each stage, or a function (stage, conversation) -> reply. A plain text is a reply of
    one token. A script may raise GenerationError. It replies in full whatever the limits. ValueError for a
    call that breaks the protocol. calls: every call in order, a stage at
    a time. forgotten: how often `forget` was called.

    scores: what `score` returns for an assistant turn by its text, the log-probability of each token and,
    last, of the closing token; a turn with another text gets -0.1 for each token and -0.01. scored: every
    conversation that was scored, in order.
    """

    def __init__(
        self,
        script: Script,
        box_format: BoxFormat = BoxFormat(),  # noqa: B008, a frozen value
        scores: Mapping[str, tuple[float, ...]] | None = None,
        native_locate: str | None = None,
        local_patches: bool = False,
        resolution: DynamicResolution | None = None,
    ) -> None:
        self.box_format = box_format
        self.template = None
        self.native_locate = native_locate
        self.local_patches = local_patches
        self.resolution = resolution
        self.calls: list[Call] = []
        self.scored: list[Conversation] = []
        self.forgotten = 0
        self._script = script
        self._scores = scores or {}

    def generate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        stages = [list(group) for _, group in groupby(prompts, lambda prompt: (prompt.stage, prompt.keep))]
        self.calls += [Call.of(stage) for stage in stages]
        for prompt in prompts:
            _check(prompt)
        return [self._answer(prompt.stage, prompt.conversation) for prompt in prompts]

    def score(self, conversations: Sequence[Conversation]) -> list[list[tuple[float, ...]]]:
        for conversation in conversations:
            _check_turns(conversation, "assistant")
        self.scored += conversations
        return [
            [self._turn(turn) for turn in conversation.turns if turn.role == "assistant"]
            for conversation in conversations
        ]

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        return image.size if self.resolution is None else self.resolution.fit(image.size)

    def forget(self, but: Sequence[Image.Image] = ()) -> None:
        self.forgotten += 1

    def _turn(self, turn: Turn) -> tuple[float, ...]:
        if turn.text in self._scores:
            return self._scores[turn.text]
        return (-0.1,) * (1 if turn.tokens is None else len(turn.tokens)) + (-0.01,)

    def _answer(self, stage: Stage, conversation: Conversation) -> Answer:
        reply = self._script(stage, conversation) if callable(self._script) else self._script.get(stage)
        if reply is None:
            raise ValueError(f"The script has no reply for the stage {stage!r}.")
        if isinstance(reply, str):
            reply = Reply(reply)
        tokens = tuple(zlib.crc32(f"{n} {reply.text}".encode()) % 32000 for n in range(len(reply.logprobs)))
        ended = reply.eos is not None
        logprobs = (*reply.logprobs, reply.eos) if reply.eos is not None else reply.logprobs
        usage = Usage(tokens=len(tokens), encodes=len(conversation.turns[-1].images))
        return Answer(stage, reply.text, tokens, logprobs, ended, usage)


def _check(prompt: Prompt) -> None:
    """ValueError when a prompt breaks the protocol's preconditions."""
    if prompt.stage not in get_args(Stage):
        raise ValueError(f"The stage is one of {get_args(Stage)}, got {prompt.stage!r}.")
    if prompt.keep is not None and prompt.keep not in get_args(Keep):
        raise ValueError(f"keep is one of {get_args(Keep)} or None, got {prompt.keep!r}.")
    _check_turns(prompt.conversation, "user")


def _check_turns(conversation: Conversation, last: str) -> None:
    """ValueError when the turns do not alternate from a user turn to one of the role `last`."""
    roles = [turn.role for turn in conversation.turns]
    if not roles or roles != [("user", "assistant")[n % 2] for n in range(len(roles))] or roles[-1] != last:
        raise ValueError(f"A conversation alternates from a user turn to a turn of {last}, got {roles}.")
