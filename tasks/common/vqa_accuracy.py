"""VQA accuracy, as the official evaluator of TextVQA (that of M4C) computes it.

Ten people answered each question. Both their answers and the reply are made comparable first: see
`comparable`, whose oddities are the official evaluator's. Pure functions on texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

ENOUGH = 3  # so many of the other people's answers must agree for a full point

# Removed where one of them stands beside a blank in the text, else replaced by a blank.
_MARKS = ';/[]"{}()=+\\_-><@`!'
_FULL_STOP = re.compile(r"\.(?!\d)")  # "3.5" keeps its own, ".5" too
_ARTICLES = {"a", "an", "the"}
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS.split())}
_CONTRACTIONS = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't
    oughtn't shan't shouldn't wasn't weren't won't wouldn't
    could've might've must've not've should've they've we've what've where've who've would've you've
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
    something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've you'd've
    he'd how'd it'd somebody'd someone'd something'd there'd they'd where'd who'd you'd
    how'll it'll somebody'll someone'll something'll they'll what'll who'll why'll y'all'll you'll
    there're they're what're why're you're
    he's how's somebody's someone's that's there's what's when's where's who's why's
    ma'am o'clock 'twas y'all 'ow's'at
"""


def _with_one_left_out(word: str) -> Iterator[str]:
    """The word without its first apostrophe, without its second, and so on."""
    for index, letter in enumerate(word):
        if letter == "'":
            yield word[:index] + word[index + 1 :]


_FULL_FORMS = {short: word for word in _CONTRACTIONS.split() for short in _with_one_left_out(word)}


def comparable(text: str) -> str:
    """A text in the form in which answers are compared.

    In small letters, without commas, question marks, articles and full stops that no digit follows; other
    marks go or become blanks; numbers up to ten are digits, "none" is 0; "dont" is "don't", while "what's"
    is two words, "what" and "'s".
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    words = _FULL_STOP.sub("", _without_marks(text)).split()
    digits = (_DIGITS.get(word, word) for word in words)
    return " ".join(_FULL_FORMS.get(word, word) for word in digits if word not in _ARTICLES)


def _without_marks(text: str) -> str:
    cleaned = text
    for mark in _MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_blank else " ")
    return cleaned


def vqa_accuracy(reply: str, answers: Sequence[str]) -> float:
    """How far a reply agrees with people's answers, 0 to 100: the mean over all ways to leave one out.

    A round is worth the share of 3 among the remaining answers that equal the reply, at most 1. Of ten
    answers that makes 0, 30, 60, 90 for 0, 1, 2, 3 equal ones and 100 for more.
    """
    given, expected = comparable(reply), [comparable(answer) for answer in answers]
    equal = expected.count(given)
    rounds = [min(ENOUGH, equal - (answer == given)) for answer in expected]
    return 100.0 * sum(rounds) / (ENOUGH * len(rounds))
