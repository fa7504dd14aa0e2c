"""Which part of a reply each of its tokens wrote. Knows no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")
_PART = "\ufffd"  # stands for the bytes of a character that is not whole yet


def lengths(parts: Sequence[str], text: str) -> tuple[int, ...] | None:
    """How many characters of `text` each token wrote, from the tokens' own texts; None where they differ.

    Blanks may be lost on either side: a reply is stripped, and some servers leave them out of tokens. Where
    the text ends before its tokens, as at a stop string, the last ones have fewer characters, or none.

    >>> lengths([" Two", " cats", ".", "\\n"], "Two cats.")
    (3, 5, 1, 0)
    """
    ends, place = [0], 0
    for part in parts:
        for character in part:
            if character.isspace() and text[place : place + 1] != character:
                continue
            while text[place : place + 1] != character and text[place : place + 1].isspace():
                place += 1
            if place == len(text):
                break
            if text[place] != character:
                return None
            place += 1
        ends.append(place)
    return tuple(end - start for start, end in pairwise(ends))


def whole_characters(tokens: Sequence[T], decode: Callable[[Sequence[T]], str]) -> Iterator[str]:
    """The text of each token; of several that write one character together, the last has it.

    >>> def decode(tokens):
    ...     return b"".join(tokens).decode("utf-8", "replace")
    >>> list(whole_characters([b"a", b"\\xc3", b"\\xa9"], decode))
    ['a', '', 'é']
    """
    held: list[T] = []
    for token in tokens:
        held.append(token)
        text = decode(held)
        if text.endswith(_PART):
            yield ""
        else:
            yield text
            held = []
