"""The annotated objects of one image, and what they may be called. Knows names and boxes, no questions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dualfocus_lmms.boxes import Box
from dualfocus_lmms.train.vg.config import VGConfig
from dualfocus_lmms.train.vg.words import Words


@dataclass(frozen=True, eq=False, slots=True)
class Thing:
    """One annotated object. box: fractions of the image. names and attributes: as annotated."""

    id: int
    box: Box
    names: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    group: bool = False  # one box around several ("trees")


@dataclass(eq=False)
class Scene:
    """The annotated objects of one image, by name.

    texts: its region phrases and questions; a plural in them shows that the image has several of a thing.
    """

    things: Sequence[Thing]
    texts: Iterable[str]
    config: VGConfig
    by_name: dict[str, list[Thing]] = field(init=False, default_factory=dict)
    plural_names: set[str] = field(init=False, default_factory=set)
    adjectives: set[str] = field(init=False, default_factory=set)
    known: set[str] = field(init=False)  # all names that a question can use for something annotated

    def __post_init__(self) -> None:
        words = self.config.words
        for thing in self.things:
            for name in all_names(thing.names, words):
                self.by_name.setdefault(name, []).append(thing)
            self.adjectives.update(word for attribute in thing.attributes for word in words.tokens(attribute))
        wider = [*words.kinds.items(), *words.related.items()]
        self.known = set(self.by_name) | {name for name, others in wider if others & self.by_name.keys()}
        if self.config.plural_evidence:
            for text in self.texts:
                tokens = words.tokens(text)
                if tokens[:2] != ["how", "many"]:
                    self.plural_names.update(
                        words.name([token]) for token in tokens if words.is_plural(token)
                    )

    def grown(self, things: Iterable[Thing]) -> Scene:
        """This scene with the things that are not in it yet."""
        known = {thing.id for thing in self.things}
        new = [thing for thing in things if thing.id not in known]
        if not new:
            return self
        scene = Scene([*self.things, *new], (), self.config)
        scene.plural_names.update(self.plural_names)
        return scene

    def called(self, name: str) -> list[Thing]:
        """The things that `name` can mean: those annotated with it and the members of the kind.

        What is annotated with a strict kind's name only may be one too; where there is nothing else, what any
        wider or related name calls.
        """
        words = self.config.words
        wider = [kind for kind, members in words.kinds.items() if name in members]
        strict = [kind for kind in wider if kind in words.strict_kinds]
        for names in ([name, *words.kinds.get(name, ()), *strict], wider, words.related.get(name, ())):
            if found := {thing.id: thing for key in sorted(names) for thing in self.by_name.get(key, ())}:
                return list(found.values())
        return []


def all_names(names: Iterable[str], words: Words) -> set[str]:
    """Every name a question may use: the names and their last words ("phone" for "office phone")."""
    found = set()
    for text in names:
        tokens = head_tokens(text, words)
        for start in range(len(tokens)):
            if start and (tokens[-1] in words.positions or tokens[-1] in words.attributes):
                break
            found.add(words.name(tokens[start:]))
    return found - {""}


def head_tokens(name: str, words: Words) -> list[str]:
    """The words of an annotated name up to a preposition: "bottle" of "bottle of water"."""
    tokens = words.tokens(name)
    cut = next((index for index, token in enumerate(tokens) if index and token in words.functions), None)
    return tokens[:cut]


def has_both_forms(thing: Thing, words: Words) -> bool:
    """Whether a thing is annotated in singular and plural alike ("curtain", "curtains")."""
    heads = [tokens[-1] for name in thing.names if (tokens := head_tokens(name, words))]
    return len({words.is_plural(head) for head in heads}) == 2


def is_group(names: Sequence[str], words: Words) -> bool:
    """Whether names say that one box holds several things: all of them are plurals."""
    lasts = [tokens[-1] for name in names if (tokens := head_tokens(name, words))]
    return bool(lasts) and all(words.is_plural(last) for last in lasts)


def share(inner: Box, outer: Box) -> float:
    """The share of `inner` that lies inside `outer`, 0 to 1."""
    width = min(inner.x1, outer.x1) - max(inner.x0, outer.x0)
    height = min(inner.y1, outer.y1) - max(inner.y0, outer.y0)
    return max(width, 0.0) * max(height, 0.0) / inner.area if inner.area else 0.0


def box_around(things: Iterable[Thing]) -> Box:
    """The smallest box around one or more things."""
    return Box.around(thing.box for thing in things)
