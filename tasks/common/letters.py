"""Which option a reply names: pure functions on texts.

Nothing is guessed: a reply that may mean two options names none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

_OPENING_MARKS = "\"'`*([{\u201c\u2018"
_CLOSING_MARKS = "\"'`*)]}\u201d\u2019.,;:!?"

# Punctuation of East Asian writing, to the ASCII marks of the patterns.
_NARROW = str.maketrans("\uff1a\uff08\uff09\uff0e\u3002\uff0c\u3001\uff01\uff1f\u3010\u3011", ":()..,,!?[]")

# "The answer is", "Answer:", "the correct option is option", or "Option" before a capital.
_LEAD_IN = re.compile(
    r"^.*?\b(?:answer|option|choice)(?:\s+is\b\s*:?|\s*:|(?=\s+\W*(?-i:[A-Z])\b))\s*(?:option\s+)?",
    re.IGNORECASE | re.DOTALL,
)
_ALONE = re.compile(r"^\W*([A-Za-z])\W*$")
# A letter that opens a text: the whole of it, or closed by a mark or a line break ("B. a cat", "(B) a cat").
_LABEL = re.compile(r"^[\s\"'`*(\[]*([A-Za-z])(?:\W*$|[\"'`*]*(?:[.):,\]]|\s*\n))")
# A capital that stands alone; not the article in "A cat", nor the pronoun in "I see".
_LONE_CAPITAL = re.compile(r"(?<![\w'\u2019-])(?:[B-HJ-Z]|[AI](?!\s+[a-z]))(?![\w'\u2019-])")

# Where a reply marks its answer: <answer>B</answer>, \\boxed{B}.
_MARKED = re.compile(r"<answer>(.*?)</answer>|\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", re.IGNORECASE | re.DOTALL)
_TEX_FONT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
# Sentences that name a letter: "It is B.", "option b", "B is correct".
_IT_IS = re.compile(
    r"^\s*(?i:it(?:\s+is|['\u2019]s)\s+(?:(?:option|choice)\s+)?)[\"'`*(\[]*([A-HJ-Z])[\"'`*)\].!\s]*$"
)
_OPTION = re.compile(r"^\s*(?:option|choice)\s+[\"'`*(\[]*([a-z])[\"'`*)\].!\s]*$", re.IGNORECASE)
_IS_CORRECT = re.compile(
    r"^\s*[\"'`*(\[]*([A-HJ-Z])[\"'`*)\]]*\s+is\s+(?:the\s+)?(?:correct|right)(?:\s+(?:answer|option|choice))?"
    r"[\"'`*]*(?P<reason>$|[.,;:!\n].*|\s+(?:because|since)\b.*)",
    re.DOTALL,
)
_NEGATED = re.compile(
    r"\b(?:not|no|never|neither|nor|cannot|but|wrong|incorrect|false|unless|if)\b|n['\u2019]t\b",
    re.IGNORECASE,
)


def normalise(text: str) -> str:
    """A text without case and without punctuation around its words; words joined by one blank.

    Quotes, brackets and * go from the front of a word, the closing ones and . , ; : ! ? from its end. Nothing
    inside a word goes: "t-shirt" is not "tshirt" and "3.5" is not "35".
    """
    words = (word.lstrip(_OPENING_MARKS).rstrip(_CLOSING_MARKS) for word in text.casefold().split())
    return " ".join(word for word in words if word)


def letters(options: Sequence[str]) -> str:
    """The letters of the options, "ABC" for three of them (26 at most)."""
    return ascii_uppercase[: len(options)]


def read_letter(reply: str, options: Sequence[str]) -> str | None:
    """The one option a reply names, as its letter; None when it names none or more than one.

    Where the reply marks its answer, as <answer>B</answer> or \\boxed{B}, that is read. Else, in this order:
    a letter alone, in any case ("b.", "(D)"); an option's own text, normalised; a letter that opens the reply
    and is closed by a mark or a line break ("B. a cat"); a sentence that says no more than a letter ("It is
    B.", "option b") or that it is correct ("B is correct"). Each may follow a lead-in ("The answer is").
    """
    marked = list(_MARKED.finditer(reply))
    return _letter_of_marks(reply, marked, options) if marked else _letter_of_words(reply, options)


def _letter_of_marks(reply: str, marked: Sequence[re.Match[str]], options: Sequence[str]) -> str | None:
    """The letter in all marked answers, unless the words before or after them deny it or name another one."""
    found = {read_letter(_TEX_FONT.sub(r"\1", match[1] or match[2] or ""), options) for match in marked}
    letter = found.pop()
    if found or letter is None:
        return None
    before, after = reply[: marked[0].start()], reply[marked[-1].end() :].lstrip(" \t\n$.,;:!*)")
    sentences = (re.split(r"[.!?\n]", before)[-1], re.split(r"[.!?\n]", after)[0])
    denied = any(_NEGATED.search(sentence) for sentence in sentences)
    others = set(_LONE_CAPITAL.findall(after)) & set(letters(options)) - {letter}
    outside = _letter_of_words(before, options)
    return None if denied or others or outside not in (None, letter) else letter


def _letter_of_words(reply: str, options: Sequence[str]) -> str | None:
    if (alone := _ALONE.match(reply)) and alone[1].upper() in letters(options):
        return alone[1].upper()
    plain = reply.translate(_NARROW).strip()
    rest = _LEAD_IN.sub("", plain, count=1)
    lead_in = plain[: len(plain) - len(rest)]
    return (
        _letter_of_text(reply, options)
        or _letter_of_text(rest, options)
        or _label(rest, plain, options)
        or _stated(plain, options)
        or (None if _NEGATED.search(lead_in) else _stated(rest, options))
    )


def _label(text: str, reply: str, options: Sequence[str]) -> str | None:
    """The letter that opens `text`, unless the reply may mean another one as well.

    It may when a capital of another option stands alone anywhere ("A, B"), and when a small letter is
    followed by anything ("a, b"). A letter followed by its own option is clear ("B. vitamin C").
    """
    label = _LABEL.match(text)
    if label is None or label[1].upper() not in letters(options):
        return None
    letter, rest = label[1].upper(), normalise(text[label.end() :])
    if _letter_of_text(rest, options) == letter:
        return letter
    others = set(_LONE_CAPITAL.findall(reply)) & set(letters(options)) - {letter}
    return None if others or (rest and label[1].islower()) else letter


def _stated(text: str, options: Sequence[str]) -> str | None:
    """The letter of a sentence that names one, with no other option and no "not" after it."""
    found = _IT_IS.match(text) or _OPTION.match(text) or _IS_CORRECT.match(text)
    if found is None or found[1].upper() not in letters(options):
        return None
    letter, reason = found[1].upper(), found.groupdict().get("reason") or ""
    others = set(_LONE_CAPITAL.findall(reason)) & set(letters(options)) - {letter}
    return None if others or _NEGATED.search(reason) else letter


def _letter_of_text(text: str, options: Sequence[str]) -> str | None:
    texts = [normalise(option) for option in options]
    given = normalise(text)
    return ascii_uppercase[texts.index(given)] if given and given in texts else None
