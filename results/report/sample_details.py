"""Everything that a trace holds of one sample, for the page. Knows no HTML."""

from __future__ import annotations

import math
from typing import Any

from dualfocus_lmms.trace import Trace
from dualfocus_lmms.types import Answer
from dualfocus_lmms.visualize import verdict

LONGEST = 4000  # characters of a prompt or a reply
MOST_TOKENS = 200  # of a reply
SMALLEST = -99.0  # log-probability; JSON has no infinity


def detail(trace: Trace) -> dict[str, Any]:
    """Prompts by stage, the replies in order, and the choice in words.

    given: the text in the place of the model's reply where the region comes from elsewhere (`grounding`).
    """
    return {
        "prompts": {stage: _short(prompt) for stage, prompt in trace.prompts.items()},
        "replies": [_reply(answer) for answer in trace.answers],
        "grounding": trace.grounding,
        "given": None if trace.given_reply is None else _short(trace.given_reply),
        "verdict": verdict(trace),
    }


def _reply(answer: Answer) -> dict[str, Any]:
    """seconds, computed (tokens) and encodes: None where the run did not count them. more: tokens left out."""
    usage = answer.usage
    return {
        "stage": answer.pathway,
        "text": _short(answer.text),
        "tokens": list(answer.tokens[:MOST_TOKENS]),
        "logprobs": [round(_finite(value), 4) for value in answer.logprobs[:MOST_TOKENS]],
        "more": max(0, len(answer.logprobs) - MOST_TOKENS),
        "ended": answer.ended,
        "seconds": None if usage is None else round(usage.seconds, 5),
        "computed": None if usage is None else usage.tokens,
        "encodes": None if usage is None else usage.encodes,
    }


def seconds(trace: Trace) -> float:
    """What all replies took together; nan where the run did not measure it."""
    usages = [answer.usage for answer in trace.answers]
    return math.nan if None in usages else sum(usage.seconds for usage in usages if usage is not None)


def box_of(value: Any) -> list[float] | None:
    """A box of a document as the page draws it, corners as fractions of the image; None without one."""
    return None if value is None else [round(float(side), 4) for side in value]


def _finite(logprob: float) -> float:
    return max(logprob, SMALLEST) if logprob == logprob else SMALLEST


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
