"""Everything that a trace holds of one sample, for the page. Knows no HTML."""

from __future__ import annotations

import math
from typing import Any

from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer
from dualfocus_lmms.visualize import verdict

LONGEST = 4000  # characters of a prompt or a reply
MOST_TOKENS = 200  # of a reply


def detail(trace: Trace) -> dict[str, Any]:
    """Prompts by stage, the replies in order, and the choice in words.

    cards: which of the replies are the macro and the micro answer.

    given: the text in the place of the model's reply where the region comes from elsewhere (`grounding`).
    """
    return {
        "prompts": {stage: _short(prompt) for stage, prompt in trace.prompts.items()},
        "replies": [_reply(answer) for answer in trace.answers],
        "cards": [0, None if trace.micro is None else trace.answers.index(trace.micro)],
        "grounding": trace.grounding,
        "given": None if trace.given_reply is None else _short(trace.given_reply),
        "verdict": verdict(trace),
    }


def _reply(answer: Answer) -> dict[str, Any]:
    """A reply as JSON. computed: tokens. more: tokens left out. lengths: see `Answer`."""
    return {
        "stage": answer.pathway,
        "text": _short(answer.text),
        "tokens": list(answer.tokens[:MOST_TOKENS]),
        "logprobs": [round(value, 4) for value in answer.logprobs[:MOST_TOKENS]],
        "lengths": None if answer.lengths is None else list(answer.lengths[:MOST_TOKENS]),
        "more": max(0, len(answer.logprobs) - MOST_TOKENS),
        "ended": answer.ended,
        "seconds": round(answer.usage.seconds, 5),
        "computed": answer.usage.tokens,
        "encodes": answer.usage.encodes,
    }


def seconds(trace: Trace) -> float:
    """What all replies took together; nan where the run measured nothing."""
    return trace.seconds or math.nan


def box_of(value: Any) -> list[float] | None:
    """A box of a document as the page draws it, corners as fractions of the image; None without one."""
    return None if value is None else [round(float(side), 4) for side in value]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
