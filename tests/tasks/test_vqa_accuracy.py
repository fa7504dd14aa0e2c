"""VQA accuracy: how answers are made comparable, and what a reply is worth."""

from __future__ import annotations

import pytest

from dualfocus_lmms.tasks.common.vqa_accuracy import comparable, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "compared"),
    [
        ("", ""),
        ("  Dakota   Digital\n", "dakota digital"),
        ("no\nsmoking\tarea", "no smoking area"),
        # Articles.
        ("The Dakota", "dakota"),
        ("An apple and a pear", "apple and pear"),
        ("a", ""),
        ("the the", ""),
        # Numbers.
        ("ten", "10"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("one of two", "1 of 2"),
        ("1,000", "1000"),
        ("1, 2", "1 2"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("10:30", "10:30"),
        ("100%", "100%"),
        ("#1", "#1"),
        # Full stops.
        ("U.S.A.", "usa"),
        ("10 a.m.", "10 am"),
        ("www.b.com", "wwwbcom"),
        ("v.2", "v.2"),
        # Marks: a blank, or nothing where one of them stands beside a blank.
        ("t-shirt", "t shirt"),
        ("t -shirt", "t shirt"),
        ("self-righteous - ale", "selfrighteous ale"),
        ("left/right", "left right"),
        ("left / right", "left right"),
        ("(left)", "left"),
        ('"Stop"', "stop"),
        ("stop!", "stop"),
        ("stop!! now", "stop now"),
        ("stop!!now", "stop now"),
        ("coca_cola", "coca cola"),
        ("a@b", "b"),
        ("what?", "what"),
        ("salt & pepper", "salt & pepper"),
        # Contractions.
        ("dont", "don't"),
        ("don't", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("12 oclock", "12 o'clock"),
        ("12 o'clock", "12 o'clock"),
        ("whats", "what's"),
        ("what's", "what 's"),
        ("Joe's", "joe 's"),
        ("im", "im"),
        ("wed", "wed"),
        ("hell", "hell"),
    ],
)
def test_comparable(text: str, compared: str) -> None:
    assert comparable(text) == compared


@pytest.mark.parametrize(
    ("reply", "equal", "accuracy"),
    [
        ("nokia", 0, 0.0),
        ("nokia", 1, 30.0),
        ("nokia", 2, 60.0),
        ("nokia", 3, 90.0),
        ("nokia", 4, 100.0),
        ("nokia", 10, 100.0),
        ("The Nokia.", 3, 90.0),
        ("NOKIA", 2, 60.0),
        ("nokia phone", 10, 0.0),
        ("", 10, 0.0),
    ],
)
def test_ten_answers(reply: str, equal: int, accuracy: float) -> None:
    answers = ["nokia"] * equal + [f"other {number}" for number in range(10 - equal)]
    assert vqa_accuracy(reply, answers) == pytest.approx(accuracy)


def test_answers_are_normalised_too() -> None:
    answers = ["Ten.", "10", "ten", "10 years", *"ghijkl"]
    assert vqa_accuracy("10", answers) == pytest.approx(90.0)


def test_an_empty_reply_equals_an_answer_of_nothing_but_an_article() -> None:
    assert vqa_accuracy("", ["a", "the", *"bcdefghi"]) == pytest.approx(60.0)
