"""The lists of words in configs/vg.yaml, as phrases are read with them. Knows nothing about sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dualfocus_lmms.options import must_be

TOKEN = re.compile(r"[a-z0-9_]+|'s\b|'(?=\s|$)|n't\b|[,;]")
_ES = ("sses", "shes", "ches", "xes", "zzes", "toes", "goes")  # plurals that lose two letters

Number = Literal["singular", "plural"]


def split(words: Any) -> Any:
    """Words that may be written as one text, as a list."""
    return words.split() if isinstance(words, str) else words


def _are_words(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, (str, int, float)) for value in values)


def _by_synonym(groups: Any) -> Any:
    """Each word to the first of its group."""
    if not isinstance(groups, list) or not all(_are_words(group) and group for group in groups):
        return groups
    return {other: first for first, *others in groups for other in others}


def _by_first(pairs: Any) -> Any:
    """The first of each pair to the second."""
    if not isinstance(pairs, list) or not all(_are_words(pair) and len(pair) == 2 for pair in pairs):
        return pairs
    return dict(pairs)


Word = Annotated[str, Field(coerce_numbers_to_str=True)]
WordSet = Annotated[frozenset[Word], BeforeValidator(split), must_be("a list of words or one text")]
Compounds = Annotated[Mapping[Word, Word], BeforeValidator(_by_first), must_be("a list of pairs of words")]
Synonyms = Annotated[Mapping[Word, Word], BeforeValidator(_by_synonym), must_be("a list of lists of words")]


@dataclass(frozen=True, eq=False)
class Words:
    """The word lists of configs/vg.yaml, each described there. Names are in the singular, lower case."""

    irregular_plurals: Mapping[Word, Word]
    not_plural: WordSet
    ing_nouns: WordSet
    placeholders: WordSet
    synonyms: Synonyms
    kinds: Mapping[str, WordSet]
    strict_kinds: WordSet
    related: Mapping[str, WordSet]
    stuff: WordSet
    parts: WordSet
    plural_only: WordSet
    pairs: WordSet
    scenes: WordSet
    compounds: Compounds
    colors: WordSet
    color_aliases: Mapping[Word, Word]
    materials: WordSet
    relative: WordSet
    attributes: WordSet
    adjectives: WordSet
    verbs: WordSet
    no_target: WordSet
    outside: WordSet
    owning: WordSet
    positions: WordSet
    places: WordSet
    functions: WordSet
    numbers: Mapping[Word, int]
    photo_words: Annotated[tuple[Word, ...], BeforeValidator(split)]

    def tokens(self, text: str) -> list[str]:
        """Lower-case words of `text`; "man's" is two, a compound ("license plate") is one."""
        text = text.lower().replace("\u2019", "'").replace("-", " ")
        text = re.sub(r"\b(what|where|who|how|it|that|there|he|she|here|when|why)'s\b", r"\1 is", text)
        text = re.sub(r"\b(is|are|does|do|did|was|were|has|have|ca|could|would)n't\b", r"\1 not", text)
        return TOKEN.findall(self._compounds.sub(self._join, text))

    def name(self, words: str | list[str]) -> str:
        """The one name that all synonyms and the plural of `words` share: "Guys" and "man" give "man"."""
        parts = words.split() if isinstance(words, str) else words
        plain = " ".join([*parts[:-1], self.singular(parts[-1])]) if parts else ""
        return self.synonyms.get(plain, self.synonyms.get(" ".join(parts), plain))

    def singular(self, word: str) -> str:
        """The singular of a noun; other words, and those with no singular ("pants"), stay as they are."""
        if word in self.irregular_plurals:
            return self.irregular_plurals[word]
        if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
            return word
        if word in self.not_plural or word in self.plural_only:
            return word
        if word.endswith("ies"):
            return word[:-3] + "y"
        return word[:-2] if word.endswith(_ES) else word[:-1]

    def is_plural(self, word: str) -> bool:
        """Whether a noun is written in the plural and means several: "cars", not "pants" or "bus"."""
        singular = self.singular(word)  # "mans" is a possessive that lost its apostrophe
        return singular != word and (
            singular not in self.irregular_plurals.values() or word in self.irregular_plurals
        )

    def color(self, word: str) -> str | None:
        """The basic colour of a colour word, or None."""
        return self.color_aliases.get(word, word) if word in self.colors else None

    @property
    def _compounds(self) -> re.Pattern[str]:
        return _compound_pattern(tuple(self.compounds))

    def _join(self, match: re.Match[str]) -> str:
        return self.compounds.get(match[1], match[1]) + (match[2] or "")


@lru_cache(maxsize=8)
def _compound_pattern(compounds: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(map(re.escape, compounds)) + r")(s?)\b")
