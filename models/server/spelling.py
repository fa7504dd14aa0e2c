r"""Whether the tokens that a server lists spell the text that it gives. Knows nothing about replies.

What servers do to a text is allowed: they leave special tokens out of it, and tokens written one by one lose
their blanks, or are parts of characters. Nothing else is.

>>> spells([Piece.of("Yes"), Piece.of("sir"), Piece.of("</s>")], " Yes sir"), spells([Piece.of("Yes")], "No")
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dualfocus_lmms.token_texts import whole_characters

# </s>, <eos>, <|im_end|>, <end_of_turn>, [EOS], <|channel>, <turn|>; the width of the bars differs.
_SPECIAL = re.compile(r"<[|\uff5c][^<>]*>|<[^<>]*[|\uff5c]>|</?[A-Za-z_][\w▁-]*>|\[[A-Za-z_]+\]")
# Those that end a reply, in every family that is known.
_CLOSING = re.compile(r"<[|\uff5c][^<>]*[|\uff5c]>|<turn\|>|</s>|<eos>|<end_of_turn>|\[EOS\]", re.IGNORECASE)
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOST = "\ufffd"  # in the place of what is no whole character


@dataclass(frozen=True, slots=True)
class Piece:
    """A token: its text as the server writes it, and its bytes."""

    text: str
    raw: bytes

    @classmethod
    def of(cls, text: str, raw: bytes | None = None) -> Piece:
        """raw: None is that of the text, and of the byte that `<0x0A>` names."""
        if raw is None:
            byte = _BYTE.fullmatch(text)
            raw = bytes([int(byte[1], 16)]) if byte else text.encode("utf-8", "replace")
        return cls(text, raw)


def is_special(text: str) -> bool:
    """Whether a token looks like one that servers leave out of texts."""
    return _SPECIAL.fullmatch(text.strip()) is not None


def is_closing(text: str) -> bool:
    """Whether a token looks like one that ends a reply."""
    return _CLOSING.fullmatch(text.strip()) is not None


def spells(pieces: Sequence[Piece], text: str) -> bool:
    """Whether the text is that of the tokens."""
    wanted = _without_blanks(text)
    return len(wanted) in _ends(pieces, wanted)


def begins(pieces: Sequence[Piece], then: Sequence[Piece], text: str) -> bool:
    """Whether the text is that of `pieces` and, where it goes on, how `then` begins: a stop string may begin
    within a token."""
    wanted, rest = _without_blanks(text), _without_blanks("".join(piece.text for piece in then))
    return any(rest.startswith(wanted[end:]) for end in _ends(pieces, wanted))


def tail(pieces: Sequence[Piece], stop: str) -> int | None:
    """How many tokens at the end hold the stop string; None when none do. Blanks may have been lost."""
    for form in (str, _without_blanks):
        wanted = form(stop)
        for count in range(1, len(pieces) + 1 if wanted else 0):
            if wanted in form("".join(piece.text for piece in pieces[-count:])):
                return count
    return None


def texts_of(pieces: Sequence[Piece], text: str) -> list[str]:
    """What each token writes of a text, without special tokens that the text leaves out."""
    left_out = (is_special(piece.text) and piece.text.strip() not in text for piece in pieces)
    written = [b"" if out else piece.raw for out, piece in zip(left_out, pieces, strict=True)]
    return list(whole_characters(written, lambda some: b"".join(some).decode("utf-8", "replace")))


def _ends(pieces: Sequence[Piece], wanted: str) -> set[int]:
    """Where in `wanted` the tokens may end when they begin at its start; empty where they are not its."""
    places = {0}
    for text, optional in _parts(pieces):
        reached = {place + len(text) for place in places if wanted.startswith(text, place)}
        if text and set(text) == {_LOST}:  # one to so many characters, or none, that a text may hold back
            reached |= {place + more for place in places for more in range(len(text) + 1)}
        places = {place for place in reached | (places if optional else set()) if place <= len(wanted)}
        if not places:
            break
    return places


def _parts(pieces: Sequence[Piece]) -> Iterator[tuple[str, bool]]:
    """The tokens' text without blanks, in parts: (text, whether it may be left out)."""
    run = b""
    for piece in pieces:
        if is_special(piece.text):
            yield from _cut(run)
            run = b""
            yield _without_blanks(piece.text), True
        else:
            run += piece.raw
    yield from _cut(run)


def _cut(run: bytes) -> Iterator[tuple[str, bool]]:
    text = _without_blanks(run.decode("utf-8", "replace"))
    for part in re.findall(f"{_LOST}+|[^{_LOST}]+", text):
        yield part, False


def _without_blanks(text: str) -> str:
    return "".join(text.split())
