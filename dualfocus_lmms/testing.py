"""A scripted model for tests of plugins: no weights, no torch. Knows the `Backend` protocol and nothing else.

backend = FakeBackend({"macro": Reply("red", (-0.9,)), "locate": "[0.10, 0.20, 0.30, 0.40]", "micro": "blue"})
traces = answer_batch(backend, [question], [Limits(16)], Settings.of())
assert traces[0].selection.text == "blue"
assert [call.stage for call in backend.calls] == ["macro", "locate", "micro"]
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.types import Answer, Keep, Limits, Stage, Usage


@dataclass(frozen=True, slots=True)
class Reply:
    """What the scripted model says: a text, the log-probability of each token, and that of the closing
    token; eos None stands for a reply that ran into its limit."""

    text: str
    logprobs: tuple[float, ...] = (-0.1,)
    eos: float | None = -0.01


Script = Callable[[Stage, Conversation], "Reply | str"] | Mapping[Stage, "Reply | str"]


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One call of `generate`, as it arrived."""

    stage: Stage
    conversations: tuple[Conversation, ...]
    limits: tuple[Limits, ...]
    keep: Keep | None

    @property
    def texts(self) -> list[str]:
        """Each conversation as text: "user: <image>What is it?", one line for each turn."""
        return [
            "\n".join(
                f"{turn.role}: {'<image>' * len(turn.images)}{turn.text}" for turn in conversation.turns
            )
            for conversation in self.conversations
        ]


class FakeBackend:
    """A `Backend` that replies by script and writes down every call.

    script: a reply for each stage, or a function (stage, conversation) -> reply. A plain text is a reply of
    one token. A script may raise GenerationError. It replies in full whatever the limits. ValueError for a
    call that breaks the protocol. calls: every call in order. forgotten: how often `forget` was called.
    """

    def __init__(self, script: Script, box_format: BoxFormat = BoxFormat()) -> None:  # noqa: B008, a frozen value
        self.box_format = box_format
        self.calls: list[Call] = []
        self.forgotten = 0
        self._script = script

    def generate(
        self,
        stage: Stage,
        conversations: Sequence[Conversation],
        limits: Sequence[Limits],
        keep: Keep | None = None,
    ) -> list[Answer]:
        self.calls.append(Call(stage, tuple(conversations), tuple(limits), keep))
        _check(stage, conversations, limits, keep)
        return [self._answer(stage, conversation) for conversation in conversations]

    def forget(self) -> None:
        self.forgotten += 1

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


def _check(
    stage: Stage, conversations: Sequence[Conversation], limits: Sequence[Limits], keep: Keep | None
) -> None:
    """ValueError when a call breaks the protocol's preconditions."""
    if stage not in get_args(Stage):
        raise ValueError(f"The stage is one of {get_args(Stage)}, got {stage!r}.")
    if keep is not None and keep not in get_args(Keep):
        raise ValueError(f"keep is one of {get_args(Keep)} or None, got {keep!r}.")
    if len(conversations) != len(limits):
        raise ValueError(f"Each conversation needs its limits: {len(conversations)} and {len(limits)} given.")
    for conversation in conversations:
        roles = [turn.role for turn in conversation.turns]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
            raise ValueError(f"A conversation alternates from a user turn to a user turn, got {roles}.")
