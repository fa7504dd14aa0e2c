"""Perplexity by hand, and what the value types refuse."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from dualfocus_lmms import Answer, Conversation, Question, StopCriteria, Usage, UserError
from dualfocus_lmms.types import Fallback

# probabilities 0.5, 0.8, 0.4 and 0.1 for the closing token
LOGPROBS = (math.log(0.5), math.log(0.8), math.log(0.4), math.log(0.1))


def answer(*logprobs: float, ended: bool = True) -> Answer:
    return Answer("macro", "x", tuple(range(len(logprobs) - ended)), logprobs, ended)


def test_perplexity_by_hand() -> None:
    # (0.5 * 0.8 * 0.4) ** (-1/3) and, with the closing token, (0.5 * 0.8 * 0.4 * 0.1) ** (-1/4)
    given = answer(*LOGPROBS)
    assert given.ppl() == pytest.approx(0.16 ** (-1 / 3))
    assert given.ppl(count_eos=True) == pytest.approx(0.016 ** (-1 / 4))
    assert given.confidence() == pytest.approx(0.16 ** (1 / 3))
    assert given.confidence(count_eos=True) == pytest.approx(0.016 ** (1 / 4))
    assert given.nll() == pytest.approx(-math.log(0.16) / 3)


def test_no_closing_token_to_count() -> None:
    cut = answer(*LOGPROBS[:3], ended=False)
    assert cut.ppl() == cut.ppl(count_eos=True) == pytest.approx(0.16 ** (-1 / 3))


def test_empty_answer_counts_its_closing_token() -> None:
    empty = Answer("macro", "", (), (math.log(0.1),), True)
    assert empty.ppl() == empty.ppl(count_eos=True) == pytest.approx(10)
    assert empty.confidence() == pytest.approx(0.1)


def test_perplexity_beyond_any_float_is_infinite() -> None:
    hopeless = answer(-800.0, ended=False)
    assert hopeless.nll() == 800
    assert hopeless.ppl() == math.inf
    assert hopeless.confidence() == 0


def test_confidence_is_at_most_one() -> None:
    assert answer(1e-7, ended=False).confidence() == 1
    assert answer(0.0, ended=False).ppl() == 1


@pytest.mark.parametrize(
    ("tokens", "logprobs", "ended"),
    [
        ((1, 2), (-0.1, -0.2), True),
        ((1, 2), (-0.1, -0.2, -0.3), False),
        ((1,), (), False),
        ((), (), True),
        ((), (), False),
        ((1,), (math.nan,), False),
        ((1,), (-math.inf,), False),
        ((1,), (-0.1, math.inf), True),
    ],
)
def test_log_probabilities_that_fit_no_answer(tokens, logprobs, ended) -> None:
    with pytest.raises(ValueError, match=r"log-prob"):
        Answer("macro", "x", tokens, logprobs, ended)


def test_the_text_of_each_token() -> None:
    logprobs = (-0.1, -0.2, -0.3)
    divided = Answer(
        "macro", "two cats.", (5, 6), logprobs, True, lengths=(3, 5)
    )  # the last one was cut away
    assert divided.pieces == ("two", " cats")
    unknown = Answer("macro", "two cats.", (5, 6), logprobs, True)
    assert unknown.pieces is None
    assert unknown == divided
    assert Answer("macro", "", (), (-0.1,), True, lengths=()).pieces == ()


@pytest.mark.parametrize("lengths", [(3,), (3, 3, 3), (10, 0), (-1, 3)])
def test_lengths_that_do_not_divide_the_text(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        Answer("macro", "two cats.", (5, 6), (-0.1, -0.2), False, lengths=lengths)


@pytest.mark.parametrize("max_new_tokens", [0, -1])
def test_limits_leave_room_for_a_token(max_new_tokens: int) -> None:
    with pytest.raises(UserError, match=str(max_new_tokens)):
        StopCriteria(max_new_tokens)


@pytest.mark.parametrize(("text", "prompt"), [("", "x"), ("x", ""), (" \n", "x"), ("x", "\t")])
def test_empty_question(text: str, prompt: str) -> None:
    with pytest.raises(UserError, match="q7"):
        Question("q7", Image.new("RGB", (2, 2)), text, prompt)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(UserError, match="q7"):
        Question("q7", Image.new("RGB", (2, 2)), "what is \ud83d?", "x")
    assert Question("q7", Image.new("RGB", (2, 2)), "what is \U0001f600?", "x").text[-2] == "\U0001f600"


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_image_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="q7"):
        Question("q7", Image.new("RGB", size), "x", "x")


def test_values_compare() -> None:
    assert answer(*LOGPROBS) == answer(*LOGPROBS)
    assert answer(*LOGPROBS) != answer(*LOGPROBS[:3])
    assert Usage(3, 1, 0.5) == Usage(tokens=3, encodes=1, seconds=0.5)


def test_a_conversation_is_extended_by_copies() -> None:
    whole, crop = Image.new("RGB", (4, 4)), Image.new("RGB", (2, 2))
    first = Conversation().user("one", whole)
    both = first.assistant("box", (1, 2)).user("two", crop)
    assert [turn.role for turn in first.turns] == ["user"]
    assert [turn.role for turn in both.turns] == ["user", "assistant", "user"]
    assert both.turns[0] is first.turns[0]
    assert both.turns[1].tokens == (1, 2)
    assert both.images == (whole, crop)
    assert both.messages() == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "box"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "two"}]},
    ]


def test_a_fallback_reason_is_its_string() -> None:
    assert [f"{reason}" for reason in Fallback] == [
        "no_box",
        "empty_region",
        "skip_confidence",
        "pathway_macro",
    ]
    for reason in Fallback:
        assert json.dumps([reason]) == f'["{reason.value}"]'
        assert str(reason) == f"{reason:s}" == reason == reason.value
        assert {reason: 1}[reason.value] == {reason.value: 1}[reason] == 1
