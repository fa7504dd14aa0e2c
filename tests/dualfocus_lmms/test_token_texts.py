"""Which part of a text each token wrote."""

from __future__ import annotations

import pytest

from dualfocus_lmms.token_texts import lengths, whole_characters


@pytest.mark.parametrize(
    ("parts", "text", "expected"),
    [
        ([" Two", " cats", ".", "\n"], "Two cats.", (3, 5, 1, 0)),
        (["yes", "\n", "no"], "yes\nno", (3, 1, 2)),
        (["Two", "cats"], "Two cats", (3, 5)),  # a server's tokens without their blanks
        (["▁"], "yes", None),
        (["yes"], "no", None),
        (["", "", "猫", ""], "猫", (0, 0, 1, 0)),
        (["yes", ".\n\nmore"], "yes.", (3, 1)),  # cut within a token
        (["yes"], "yes.", (3,)),
        (["###"], "", (0,)),
        ([], "", ()),
    ],
)
def test_characters_of_each_token(parts, text, expected):
    assert lengths(parts, text) == expected


def test_a_character_of_several_tokens_belongs_to_the_last():
    tokens = [b"a", *(bytes([one]) for one in "🐱".encode()), b" \xc3", b"\xa9b", b"\xe7"]
    texts = list(whole_characters(tokens, lambda some: b"".join(some).decode("utf-8", "replace")))
    assert texts == ["a", "", "", "", "🐱", "", " éb", ""]
