"""What is reasoning in a prompt and in a reply."""

from __future__ import annotations

import pytest

from dualfocus_lmms.reasoning import CLOSING, OPENING, answer_start, is_empty, is_open


def start(*tokens: str) -> int | None:
    return answer_start(tokens, OPENING.__contains__, CLOSING.__contains__, str.isspace)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((), 0),
        (("yes",), 0),
        (("\n", "yes"), 0),  # blanks are left out behind a tag alone
        (("<think>", "a cat", "</think>", "\n\n", "yes"), 4),
        (("a cat", "</think>", "yes"), 2),  # the prompt had opened it
        (("<|channel>", "thought", "\n", "<channel|>", "yes"), 4),
        (("</think>", "no", "<think>", "</think>", " ", "\n", "yes"), 6),
        (("</think>",), 1),
        (("</think>", "\n"), 2),
        (("<think>", "a cat"), None),
        (("</think>", "yes", "<think>"), None),
    ],
)
def test_the_answer_begins_after_the_last_closing_tag(tokens: tuple[str, ...], expected: int | None) -> None:
    assert start(*tokens) == expected


@pytest.mark.parametrize(
    ("text", "empty", "opens"),
    [
        ("", False, False),
        ("assistant\n", False, False),
        ("<think>\n\n</think>\n\n", True, False),
        ("<think></think>", True, False),
        ("<|channel>thought\n<channel|>", True, False),
        ("<think>\nHm\n</think>\n\n", False, False),
        ("assistant\n<think>\n", False, True),
        ("<|turn>model\n<|channel>thought\n", False, True),
        ("Say <think> and wait", False, False),
    ],
)
def test_what_a_prompt_ends_with(text: str, empty: bool, opens: bool) -> None:
    assert (is_empty(text), is_open(text)) == (empty, opens)
