"""The things a short English question names. Knows words (configs/vg.yaml), nothing about boxes or images.

No parser and no model: a question of Visual Genome has six words on average, and a word that is neither in
the lists nor the name of an annotated object makes its question fail: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from dualfocus_lmms.train.vg.words import Number, Words


@dataclass(eq=False, slots=True)
class Mention:
    """One noun phrase: "the two red work trucks".

    words: from its first modifier to its head, as written. head: how many of the last words are the longest
    known name, 0 when none is known. count: a number word in front. owner: the mention whose part it is ("the
    man's", "of the clock"). side: "left" or "right" when the question says where it stands.
    """

    words: list[str]
    head: int
    number: Number
    count: int | None = None
    counted: bool = False
    owner: Mention | None = None
    side: str | None = None

    @property
    def text(self) -> str:
        """The phrase as written."""
        return " ".join(self.words)

    @property
    def modifiers(self) -> list[str]:
        """The words before the head."""
        return self.words[: len(self.words) - max(self.head, 1)]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text names: its words, its noun phrases in order, and a label for each word (`_Labeller`)."""

    tokens: list[str]
    mentions: list[Mention]
    labels: str


def read(text: str, known: Container[str], words: Words, extra_adjectives: Container[str] = ()) -> Reading:
    """The noun phrases of `text`. `known` holds the names (`Words.name`) that something annotated carries."""
    labeller = _Labeller(words.tokens(text), known, words, extra_adjectives)
    labeller.run()
    mentions = _phrases(labeller.tokens, labeller.labels, labeller.heads, words)
    return Reading(labeller.tokens, mentions, "".join(labeller.labels))


class _Labeller:
    """One letter per token, from left to right; `heads`: the length of the known name that ends at a token.

    D determiner, S possessive, F other function word, P position, V verb, A adjective, T attribute noun,
    N (part of a) known name, C number, R scene, U unknown.
    """

    def __init__(self, tokens: list[str], known: Container[str], words: Words, extra: Container[str]) -> None:
        self.tokens, self.known, self.words, self.extra = tokens, known, words, extra
        self.labels: list[str] = []
        self.heads: dict[int, int] = {}

    def run(self) -> None:
        """Label all tokens."""
        while (index := len(self.labels)) < len(self.tokens):
            length = self._known_length(index)
            if length:
                self.heads[index + length - 1] = length
                self.labels += "N" * length
            else:
                self.labels.append(self._plain(index))

    def _following(self, index: int) -> str:
        return self.tokens[index + 1] if index + 1 < len(self.tokens) else ""

    def _after_noun(self) -> bool:
        return self.labels[-1:] in (["N"], ["U"], ["R"])

    def _after_owner(self) -> bool:
        """Whether "the man's" or "his" stands directly before."""
        last = self.tokens[len(self.labels) - 1] if self.labels else ""
        return self.labels[-1:] == ["S"] or last in ("his", "her", "its", "their")

    def _after_copula(self, index: int) -> bool:
        """Whether "is" stands before and something follows: "Who is CROSSING the street"."""
        return self.tokens[index - 1 : index] in COPULAS and self._following(index) != ""

    def _expects_verb(self, index: int) -> bool:
        """Whether a verb is expected here: "What does the man HOLD"."""
        return self._after_noun() and not _AUXILIARIES.isdisjoint(self.tokens[:index])

    def _in_phrase(self, index: int) -> bool:
        """Whether a determiner or possessive stands before, with nothing but modifiers between."""
        if self.labels[-1:] == ["A"] and self.words.is_plural(self.tokens[index]):
            return True
        return re.search("[DS][AC]*$", "".join(self.labels)) is not None

    def _known_length(self, index: int) -> int:
        """How many tokens from `index` on are the longest known name; 0 when none is."""
        for length in range(min(4, len(self.tokens) - index), 1, -1):
            span = self.tokens[index : index + length]
            if self.words.name(span) in self.known and _CLOSING.isdisjoint(span):
                return length
        return int(self.words.name([self.tokens[index]]) in self.known and self._is_noun(index))

    def _is_noun(self, index: int) -> bool:
        """Whether the known name `tokens[index]` is used as a noun here."""
        word, words, in_phrase = self.tokens[index], self.words, self._in_phrase(index)
        if word in words.functions or word in words.attributes or word in words.no_target:
            return False
        if word.endswith("ing") and (self._after_noun() or self._after_copula(index)):
            return False  # "the man crossing the road", against "the crossing"
        if word in words.positions:  # "the man's back" is a part, "the back of the room" a place
            return self._after_owner()
        if word in words.colors or word in words.materials or word in words.adjectives:
            return in_phrase and not self._continues(index)
        return (
            in_phrase or word not in words.verbs or (words.is_plural(word) and not self._expects_verb(index))
        )

    def _continues(self, index: int) -> bool:
        """Whether the next token may belong to the same noun phrase."""
        word = self._following(index)
        closed = word in self.words.functions or word in self.words.verbs or word in _CLOSING
        return not closed and not word.endswith(("ing", "ed")) and word not in self.words.positions

    def _plain(self, index: int) -> str:
        """The label of a token that is no known name."""
        token, words = self.tokens[index], self.words
        if token in ("'s", "'"):
            return "S"
        if token in _DETERMINERS:
            return "D"
        if token in _CLOSING or (token in words.functions and token not in words.numbers):
            return "F"
        if token.isdigit() or token in words.numbers:
            return "C"
        if words.name([token]) in words.scenes or token in words.photo_words:
            return "R"
        if token in words.attributes or token in words.placeholders:
            return "T"
        if token in words.positions:
            return "U" if self._after_owner() else "P"
        if token in words.relative | words.colors | words.materials | words.adjectives:
            return "A"
        if self._is_verb(index):
            return "V" if not self._in_phrase(index) else "A" if self._continues(index) else "U"
        return "A" if token in self.extra and self._continues(index) else "U"

    def _is_verb(self, index: int) -> bool:
        """Whether a token can be a verb or an adverb in -ly."""
        token = self.tokens[index]
        if token in self.words.verbs or token.endswith("ly") or self._expects_verb(index):
            return True
        participle = token.endswith(("ing", "ed")) and len(token) > 4
        if self._after_noun() or self._after_copula(index):
            return participle
        return participle and token not in self.words.ing_nouns


COPULAS = (["is"], ["are"], ["was"], ["were"])
_AUXILIARIES = frozenset(("do", "does", "did", "can", "could", "would", "will"))
_DETERMINERS = frozenset("the a an this these that those his her its their".split())  # noqa: SIM905
_CLOSING = frozenset(("", "'s", "'", ",", ";", "n't"))


def _phrases(tokens: list[str], labels: list[str], heads: dict[int, int], words: Words) -> list[Mention]:
    """The mentions, with their owners and sides."""
    mentions: list[Mention] = []
    ends: list[int] = []
    start: int | None = None
    for index in range(len(tokens) + 1):
        label = labels[index] if index < len(tokens) else "F"
        if label in ("A", "N", "U", "C"):
            start = index if start is None else start
            continue
        if label == "R":  # "street scene" is no street
            start = None
        if start is not None:
            last = max((i for i in range(start, index) if labels[i] in ("N", "U")), default=None)
            if last is not None:
                mentions.append(_mention(tokens, labels, heads, start, last, words))
                ends.append(last)
        start = None
    for number, mention in enumerate(mentions):
        _own(mention, mentions, number, ends, tokens, labels)
    _sides(mentions, ends, tokens)
    return mentions


def _mention(
    tokens: list[str], labels: list[str], heads: dict[int, int], start: int, last: int, words: Words
) -> Mention:
    """The mention of tokens start..last (inclusive), whose head ends at `last`."""
    span = tokens[start : last + 1]
    count = next(
        (words.numbers.get(word, _digits(word)) for word in span if word in words.numbers or word.isdigit()),
        None,
    )
    if start and tokens[start - 1] == "both":
        count = 2
    before = [i for i in range(start, last + 1 - heads.get(last, 1)) if i in heads]
    inner = [Mention(tokens[i + 1 - heads[i] : i + 1], heads[i], _number(tokens[i], words)) for i in before]
    return Mention(
        words=[word for i, word in enumerate(span, start) if labels[i] != "C"],
        head=heads.get(last, 0),
        number=_number(tokens[last], words),
        count=count,
        counted=tokens[max(start - 2, 0) : start] == ["how", "many"]
        or "number" in tokens[max(start - 2, 0) : start],
        owner=inner[-1] if inner else None,
    )


def _digits(word: str) -> int | None:
    return int(word) if word.isdigit() and len(word) < 6 else None


def _number(word: str, words: Words) -> Number:
    return "plural" if words.is_plural(word) else "singular"


def _own(
    mention: Mention,
    mentions: list[Mention],
    number: int,
    ends: list[int],
    tokens: list[str],
    labels: list[str],
) -> None:
    """Note whose part `mention` is: "the man's X", "X of the clock", "X on the table"."""
    start = ends[number] + 1 - len(mention.words)
    if number and "S" in labels[ends[number - 1] + 1 : start]:
        mention.owner = mentions[number - 1]
    elif mention.owner is None and number + 1 < len(mentions):
        following = ends[number + 1] + 1 - len(mentions[number + 1].words)
        between = [token for token in tokens[ends[number] + 1 : following] if token not in ("the", "a", "an")]
        if between and between[-1] in ("of", "on", "in", "with") and len(between) <= 2:
            mention.owner = mentions[number + 1]


def _sides(mentions: list[Mention], ends: list[int], tokens: list[str]) -> None:
    """Note where mentions stand: "the man on the right", "the left man"."""
    for index, token in enumerate(tokens):
        if token in ("left", "right") and tokens[index + 1 : index + 2] != ["of"]:
            before = [mention for mention, end in zip(mentions, ends, strict=True) if end < index]
            after = [mention for mention, end in zip(mentions, ends, strict=True) if end > index]
            adjective = index + 1 < len(tokens) and after and after[0].words[0] == tokens[index + 1]
            chosen = after[:1] if adjective else before[-1:]
            for mention in chosen:
                mention.side = token


_QUESTION_WORDS = ("what", "where", "who", "which", "when", "why", "how")


def needed_from_answer(question: Reading, words: Words) -> str:
    """What of the answer the region must show.

    "where" for its place, "thing" for what it names, "" for nothing: the question is about an attribute, or
    names everything that is needed itself.
    """
    tokens, labels = question.tokens, question.labels
    position = next((index for index, token in enumerate(tokens) if token in _QUESTION_WORDS), len(tokens))
    word, rest = " ".join(tokens[position : position + 1]), labels[position + 1 :]
    if word == "where":
        return "where"
    attributes = {token for token, label in zip(tokens, labels, strict=True) if label == "T"}
    if word not in ("what", "who", "which") or words.no_target.intersection(tokens):
        return ""
    if attributes - words.placeholders:
        return ""
    if word == "who" or attributes:
        return "thing"
    if rest[:1] in ("N", "U", "A"):  # "what room ...", "what floor ..."
        return ""
    named = tokens[position + 1 : position + 2] in COPULAS and re.match(r"[VF]D?[AC]*[NU]", rest)
    return "" if named and rest[-1] in "NURP" else "thing"  # "what is the box on the pole" asks about the box
