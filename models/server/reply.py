"""From a server's chat completion to an `Answer`. Knows nothing about requests.

What servers differ in is settled here: which tokens they list, whether the closing one is among them, what
ended a reply, whether they tell token ids. Whether the tokens spell the text: `spelling.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from zlib import crc32

from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.models.server.spelling import (
    Piece,
    begins,
    is_closing,
    is_special,
    spells,
    tail,
    texts_of,
)
from dualfocus_lmms.reasoning import CLOSING, OPENING, answer_start
from dualfocus_lmms.text_output import excerpt
from dualfocus_lmms.token_texts import lengths
from dualfocus_lmms.types import Answer, Stage, StopCriteria, Usage

_MISSING = -9999.0  # what servers write in place of a log-probability that they do not have
_ROUNDING = 1e-3  # nats above 0 that a log-probability may have
_NUMBER = (int, float)


@dataclass(frozen=True, slots=True)
class Source:
    """Which server a reply came from, and in which stage."""

    url: str
    stage: Stage

    def refuse(self, came: str, needed: str) -> NoReturn:
        """GenerationError: what came, and what is needed instead."""
        raise GenerationError(f"{self.url} replied in the {self.stage} stage with {came}. Needed: {needed}.")

    def field(self, holder: dict[str, Any], name: str, kind: Any, place: str, needed: bool = True) -> Any:
        """An entry of a JSON object. None where it is absent or null and not `needed`."""
        value = holder.get(name)
        if value is None and not needed:
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds:
            came = f"no {place}" if value is None else f"{place} {excerpt(repr(value), 60)}"
            self.refuse(came, f"a chat completion, where it is of type {kinds[0].__name__}")
        return value

    def text(self, holder: dict[str, Any], name: str, place: str, needed: bool = True) -> Any:
        """A text of a JSON object, without half a character."""
        value = self.field(holder, name, str, place, needed)
        if value is not None and any("\ud800" <= letter <= "\udfff" for letter in value):
            self.refuse(f"half a character in {place}, {ascii(value)[:60]}", "whole characters")
        return value


def read_reply(
    source: Source,
    completion: dict[str, Any],
    limits: StopCriteria,
    needs_end: bool,
    images: int,
    seconds: float,
) -> Answer:
    """The answer in a chat completion, which is a JSON object.

    needs_end: refuse a server that does not list the closing token. images: how many the request carried.
    Tokens are the server's ids; where it reports none they are negative, one number for each text.
    GenerationError when the object is no whole completion of one reply, when its log-probabilities are
    missing, unusable or not those of the reply.
    """
    choice = _choice(source, completion)
    usage, spoken = _usage(source, completion, images, seconds)
    pieces, logprobs = _listed(source, choice, limits)
    text = _content(source, choice)
    if spoken - len(pieces) not in (0, 1):
        source.refuse(
            f"{len(pieces)} log-probabilities for {spoken} tokens", f"one for each token; {_PARSER}"
        )
    ids = _token_ids(source, choice, pieces, spoken)
    stop = _stop_string(source, choice, pieces, limits.stop)
    if stop is not None:
        text, count = text.partition(stop)[0], _before(source, pieces, stop)
        if not begins(pieces[:count], pieces[count:], text):
            _not_spelled(source, pieces, text)
        # An answer of nothing but a stop string keeps its first token: its perplexity must stay defined.
        kept, ended = max(count, 1), False
    else:
        ended = _ended(source, choice, pieces, text, spoken)
        kept = len(pieces) - ended
        if needs_end and not ended and choice["finish_reason"] == "stop":
            source.refuse(
                "no log-probability of the closing token",
                "that one, for count_eos=True and protocol=release: use vLLM or SGLang, or count_eos=False",
            )
    start, text = _after_reasoning(source, pieces[:kept], text, ended)
    scores = tuple(logprobs[start : kept + ended])
    text = text.strip()
    parts = lengths(texts_of(pieces[start:kept], text), text)
    return Answer(source.stage, text, ids[start:kept], scores, ended, usage, parts)


def _after_reasoning(source: Source, pieces: Sequence[Piece], text: str, ended: bool) -> tuple[int, str]:
    """(how many tokens stand before the answer, its text), see `reasoning.answer_start`."""
    texts = [piece.text.strip() for piece in pieces]
    start = answer_start(texts, OPENING.__contains__, CLOSING.__contains__, "".__eq__)
    if start == 0:
        return 0, text
    if start is None or (start == len(pieces) and not ended):
        source.refuse("reasoning that has no answer behind it", _NO_REASONING)
    behind = min((text.rpartition(tag)[2] for tag in CLOSING if tag in text), key=len, default=None)
    if behind is None:  # the server leaves tags out of texts
        behind = "".join(piece.text for piece in pieces[start:])
        if not text.strip().endswith(behind.strip()):
            source.refuse(f"reasoning and the text {excerpt(text, 80)!r}", _NO_REASONING)
    return start, behind


_NO_REASONING = (
    "an answer without reasoning: start the server with "
    """--default-chat-template-kwargs '{"enable_thinking": false}', or serve the variant without it"""
)
_PARSER = "start the server without a reasoning or tool parser"


def _choice(source: Source, completion: dict[str, Any]) -> dict[str, Any]:
    """The one reply of a completion, which must have come to its end."""
    choices = source.field(completion, "choices", list, "choices")
    if len(choices) != 1 or not isinstance(choices[0], dict):
        source.refuse(f"{len(choices)} choices, {excerpt(choices, 80)}", "one, an object")
    choice: dict[str, Any] = choices[0]
    finish = source.text(choice, "finish_reason", "choices[0].finish_reason")
    if finish not in ("stop", "length"):
        source.refuse(f"a reply that broke off: finish_reason {excerpt(finish)!r}", "'stop' or 'length'")
    return choice


def _content(source: Source, choice: dict[str, Any]) -> str:
    """The text of a reply. SGLang writes null for an empty one."""
    message = source.field(choice, "message", dict, "choices[0].message")
    for name in ("reasoning_content", "reasoning", "refusal", "tool_calls", "function_call"):
        if message.get(name):
            source.refuse(f"a text and, apart from it, {name} {excerpt(message[name], 60)!r}", _PARSER)
    content: str | None = source.text(message, "content", "choices[0].message.content", needed=False)
    return content or ""


def _listed(source: Source, choice: dict[str, Any], limits: StopCriteria) -> tuple[list[Piece], list[float]]:
    """The tokens, and the log-probability of each in nats."""
    holder = source.field(choice, "logprobs", dict, "choices[0].logprobs", needed=False) or {}
    listed = source.field(holder, "content", list, "choices[0].logprobs.content", needed=False)
    if not listed:
        source.refuse(
            "no log-probabilities",
            "logprobs, without which nothing can be selected. vLLM and SGLang give them; vLLM must not be "
            "started with a reasoning parser or --max-logprobs 0",
        )
    if len(listed) > limits.max_new_tokens:
        source.refuse(f"{len(listed)} tokens", f"{limits.max_new_tokens} at most, as requested")
    pieces, values = [], []
    for number, entry in enumerate(listed):
        place = f"choices[0].logprobs.content[{number}]"
        if not isinstance(entry, dict):
            source.refuse(f"{place} {excerpt(entry, 60)!r}", "an object")
        pieces.append(_piece(source, entry, place))
        value = source.field(entry, "logprob", _NUMBER, f"{place}.logprob")
        if not _MISSING < value <= _ROUNDING:  # nor what is no number
            source.refuse(
                f"{place}.logprob {excerpt(value, 60)}",
                f"the logarithm of a probability, {_MISSING:g} to 0: check its --dtype and the weights",
            )
        values.append(min(float(value), 0.0))
    return pieces, values


def _piece(source: Source, entry: dict[str, Any], place: str) -> Piece:
    token = source.field(entry, "token", str, f"{place}.token")
    given = source.field(entry, "bytes", list, f"{place}.bytes", needed=False)
    if given is None:
        return Piece.of(token)
    if not all(type(byte) is int and 0 <= byte < 256 for byte in given):
        source.refuse(f"{place}.bytes {excerpt(given, 60)}", "whole numbers from 0 to 255")
    return Piece.of(token, bytes(given))


def _ended(source: Source, choice: dict[str, Any], pieces: Sequence[Piece], text: str, spoken: int) -> bool:
    """Whether the last token is the closing one. GenerationError where the tokens do not spell the text."""
    if choice["finish_reason"] == "stop" and spoken == len(pieces) and spells(pieces[:-1], text):
        return True
    # All listed tokens are the reply's: a closing one is not listed, or the reply ran into its limit.
    last = pieces[-1].text.strip()
    left_out = is_closing(last) or (is_special(last) and not text.rstrip().endswith(last))
    if (choice["finish_reason"] == "stop" and left_out) or not spells(pieces, text):
        _not_spelled(source, pieces, text)
    return False


def _not_spelled(source: Source, pieces: Sequence[Piece], text: str) -> NoReturn:
    listed = "".join(piece.text for piece in pieces)
    source.refuse(
        f"the text {excerpt(text, 80)!r} and tokens that spell {excerpt(listed, 80)!r}",
        f"the tokens of the text, or the perplexity is that of another: {_PARSER}, without "
        "--return-tokens-as-token-ids, and with special tokens left out of texts",
    )


def _stop_string(
    source: Source, choice: dict[str, Any], pieces: Sequence[Piece], stops: Sequence[str]
) -> str | None:
    """The stop string that ended a reply. vLLM names it in stop_reason and SGLang in matched_stop, where a
    closing token is a number or null; of another server's reply it is found in the tokens."""
    if choice["finish_reason"] != "stop":
        return None
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            reason = choice[name]
            if reason is not None and type(reason) not in (int, str):
                source.refuse(f"{name} {excerpt(repr(reason), 60)}", "a text, a whole number or null")
            if isinstance(reason, str) and reason not in stops and not is_special(reason):
                source.refuse(
                    f"{name} {excerpt(reason, 60)!r}", f"one of the stop strings sent, {list(stops)}"
                )
            return reason if isinstance(reason, str) and reason in stops else None
    text = "".join(piece.text for piece in pieces)
    return next((stop for stop in stops if stop and stop in text), None)


def _before(source: Source, pieces: Sequence[Piece], stop: str) -> int:
    """How many tokens stand before those that hold the stop string."""
    held = tail(pieces, stop)
    if held is None:
        last = [piece.text for piece in pieces[-5:]]
        source.refuse(
            f"the stop string {stop!r} and without it in its last tokens, {excerpt(last, 80)}",
            "the texts of tokens: start the server without --return-tokens-as-token-ids",
        )
    return len(pieces) - held


def _token_ids(
    source: Source, choice: dict[str, Any], pieces: Sequence[Piece], spoken: int
) -> tuple[int, ...]:
    """The ids that vLLM reports; else a negative number made of each token's text, which equals no id."""
    ids = source.field(choice, "token_ids", list, "choices[0].token_ids", needed=False)
    if not ids:
        return tuple(-1 - crc32(piece.text.encode("utf-8", "backslashreplace")) for piece in pieces)
    if len(ids) not in (len(pieces), spoken) or not all(type(one) is int and one >= 0 for one in ids):
        source.refuse(f"token_ids {excerpt(ids, 60)}", f"{len(pieces)} whole numbers, 0 or more")
    return tuple(ids[: len(pieces)])


def _usage(source: Source, completion: dict[str, Any], images: int, seconds: float) -> tuple[Usage, int]:
    """(what the reply cost, how many tokens the server counts in it). encodes counts the images sent: a
    server does not report whether it encoded one again."""
    usage = source.field(completion, "usage", dict, "usage")
    prompt, spoken = (source.field(usage, f"{name}_tokens", int, f"usage.{name}_tokens") for name in _COUNTED)
    details = source.field(usage, "prompt_tokens_details", dict, "usage.prompt_tokens_details", needed=False)
    cached = source.field(details or {}, "cached_tokens", int, "cached_tokens", needed=False) or 0
    if min(prompt, spoken, cached) < 0 or cached > prompt:
        source.refuse(
            f"usage {excerpt(usage, 120)}", "numbers of tokens, 0 or more, no more cached than sent"
        )
    return Usage(prompt - cached + max(spoken - 1, 0), images, seconds), spoken


_COUNTED = ("prompt", "completion")
