"""From a server's chat completion to an `Answer`. Knows nothing about requests.

What servers differ in is settled here: which tokens they list, whether the closing one is among them, what
ended a reply, whether they tell token ids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.types import Answer, Stage, StopCriteria, Usage

_MISSING = -9999.0  # what servers write in place of a log-probability that they do not have


def read_reply(
    stage: Stage, completion: Any, limits: StopCriteria, needs_end: bool, images: int, seconds: float
) -> Answer:
    """The answer in a chat completion of the openai client.

    needs_end: refuse a server that does not list the closing token. images: how many the request carried.
    Tokens are the server's ids; where it tells none they are negative, one number for each text.
    GenerationError when the log-probabilities are missing, unusable or not those of the reply.
    """
    choice = _choice(completion, stage)
    listed = _listed(choice, stage)
    pieces = [entry.token for entry in listed]
    said = completion.usage.completion_tokens
    if said - len(listed) not in (0, 1):
        raise GenerationError(
            f"The server lists {len(listed)} log-probabilities for {said} tokens in the {stage} stage: "
            "switch its reasoning or tool parser off."
        )
    count, ended, text = len(listed), False, choice.message.content or ""
    stop = _stop_string(choice, pieces, limits.stop)
    if stop is not None:
        # An answer of nothing but a stop string keeps its first token: its perplexity must stay defined.
        count, text = max(count - _tail(pieces, stop), 1), text.partition(stop)[0]
    elif choice.finish_reason == "stop":
        ended = said == len(listed)
        count -= ended
        if needs_end and not ended:
            raise GenerationError(
                "The server does not list the log-probability of the closing token, which count_eos=True and "
                "protocol=release need: use vLLM or SGLang, or set count_eos=False."
            )
    logprobs = tuple(entry.logprob for entry in listed[: count + ended])
    tokens = _token_ids(choice, pieces)[:count]
    return Answer(stage, text.strip(), tokens, logprobs, ended, _usage(completion.usage, images, seconds))


def _choice(completion: Any, stage: Stage) -> Any:
    """The one reply of a completion, which must have come to its end."""
    choices = getattr(completion, "choices", None)
    if not choices or getattr(completion, "usage", None) is None:
        raise GenerationError(f"The server's reply is no chat completion: {str(completion)[:200]}")
    if choices[0].finish_reason not in ("stop", "length"):
        raise GenerationError(
            f"The server broke off a reply in the {stage} stage: finish_reason {choices[0].finish_reason!r}."
        )
    return choices[0]


def _listed(choice: Any, stage: Stage) -> list[Any]:
    """The tokens with their log-probabilities."""
    listed = choice.logprobs.content if choice.logprobs is not None else None
    if not listed:
        raise GenerationError(
            f"The server gave no log-probabilities in the {stage} stage, without which nothing can be "
            "selected. vLLM and SGLang give them; vLLM must not be started with a reasoning parser or "
            "--max-logprobs 0."
        )
    for position, entry in enumerate(listed, 1):
        if entry.logprob is None or not math.isfinite(entry.logprob) or entry.logprob <= _MISSING:
            raise GenerationError(
                f"The server's log-probability of token {position} in the {stage} stage is {entry.logprob}: "
                "check its --dtype and the checkpoint's weights."
            )
    return listed


def _stop_string(choice: Any, pieces: Sequence[str], stops: Sequence[str]) -> str | None:
    """The stop string that ended a reply. vLLM names it in stop_reason and SGLang in matched_stop, where a
    closing token is a number or null; of another server's reply it is found in the tokens."""
    if choice.finish_reason != "stop":
        return None
    for name in ("stop_reason", "matched_stop"):
        if name in (choice.model_extra or {}):
            reason = choice.model_extra[name]
            return reason if isinstance(reason, str) else None
    text = "".join(pieces)
    return next((stop for stop in stops if stop and stop in text), None)


def _tail(pieces: Sequence[str], stop: str) -> int:
    """How many tokens at the end hold the stop string. GenerationError when none do.

    Some tokenizers' tokens lose their blanks one by one, so it is looked for without blanks too.
    """
    for form in (str, _without_blanks):
        wanted = form(stop)
        for count in range(1, len(pieces) + 1 if wanted else 0):
            if wanted in form("".join(pieces[-count:])):
                return count
    raise GenerationError(
        f"The server stopped at {stop!r}, which is not in the tokens that it lists ({pieces[-5:]}): start it "
        "without --return-tokens-as-token-ids."
    )


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _token_ids(choice: Any, pieces: Sequence[str]) -> tuple[int, ...]:
    """The ids that vLLM tells; else a negative number made of each token's text, which equals no id."""
    ids = (choice.model_extra or {}).get("token_ids")
    if ids is not None and len(ids) == len(pieces):
        return tuple(ids)
    return tuple(-1 - crc32(piece.encode("utf-8", "backslashreplace")) for piece in pieces)


def _usage(usage: Any, images: int, seconds: float) -> Usage:
    """encodes counts the images sent: a server does not report whether it encoded one again."""
    cached = getattr(usage.prompt_tokens_details, "cached_tokens", None) or 0
    computed = usage.prompt_tokens - cached + max(usage.completion_tokens - 1, 0)
    return Usage(computed, images, seconds)
