"""Where a reply's reasoning ends. It is no part of the answer, nor of its perplexity.

The rule: prompts are written without reasoning (`enable_thinking=False`), and of a reply that reasons all the
same the answer begins after the last closing tag and the blanks behind it. One whose reasoning does not end
within its tokens has no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

OPENING = ("<think>", "<|channel>")  # Qwen's and others'; Gemma 4's
CLOSING = ("</think>", "<channel|>")
_EMPTY = re.compile(r"(<think>\s*</think>|<\|channel>thought\s*<channel\|>)\s*")
_OPEN = re.compile(r"(<think>|<\|channel>thought)\s*")

T = TypeVar("T")


def is_empty(text: str) -> bool:
    """Whether a text is reasoning that is closed at once, and blanks."""
    return _EMPTY.fullmatch(text) is not None


def is_open(prompt: str) -> bool:
    """Whether a prompt ends where reasoning would begin."""
    return any(match.end() == len(prompt) for match in _OPEN.finditer(prompt))


def answer_start(
    tokens: Sequence[T], opens: Callable[[T], bool], closes: Callable[[T], bool], blank: Callable[[T], bool]
) -> int | None:
    """How many tokens of a reply stand before its answer; None where its reasoning has not ended.

    >>> tests = ("<think>".__eq__, "</think>".__eq__, str.isspace)
    >>> answer_start(["<think>", "Hm", "</think>", "\\n", "Yes"], *tests), answer_start(["Yes"], *tests)
    (4, 0)
    >>> answer_start(["<think>", "Hm"], *tests) is None
    True
    """
    start = max((number + 1 for number, token in enumerate(tokens) if closes(token)), default=0)
    if any(opens(token) for token in tokens[start:]):
        return None
    while 0 < start < len(tokens) and blank(tokens[start]):
        start += 1
    return start
