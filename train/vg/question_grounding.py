"""Which region of an image a question is about: every object it names, in one box, or why there is none.

Section 3.2 filters out each question that could mean several things; appendix D asks for one box around all
the objects needed, and nearly the whole image for global questions. Knows nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from dualfocus_lmms.boxes import WHOLE, Box
from dualfocus_lmms.train.vg.objects import Scene, Thing, box_around, has_both_forms, share
from dualfocus_lmms.train.vg.phrases import Mention, Reading, needed_from_answer, read


class Reason(str, Enum):
    """Why a question was dropped."""

    AMBIGUOUS = "the question could mean several things"
    AMBIGUOUS_ANSWER = "the answer could mean several things"
    NOT_ANNOTATED = "something in the question is not annotated"
    ANSWER_NOT_ANNOTATED = "what the answer names is needed and not annotated"
    NO_OBJECT = "the question names nothing"
    COUNT = "as many things as the question or answer says are not annotated"
    CONTRADICTED = "the annotations contradict the question or answer"
    NOT_VISUAL = "no look at the image answers it"
    GLOBAL = "it is about the whole image, which the settings leave out"
    TOO_SMALL = "the box is too small"
    REPEATED = "it was asked before about the same image"
    EMPTY = "the question or the answer is empty"
    MALFORMED = "the record is malformed"
    FEW_IN_IMAGE = "too few questions of the image were kept"
    MANY_IN_IMAGE = "enough questions of the image were kept"
    NO_IMAGE = "the photo is missing"
    BAD_IMAGE = "the photo cannot be used"


@dataclass(frozen=True, slots=True)
class Grounded:
    """A kept question.

    boxes: of everything needed. how: given, region, matched or whole. names and ids: of the things inside, in
    the order they were found.
    """

    boxes: tuple[Box, ...]
    how: str
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def box(self) -> Box:
        """The box around everything needed (section 3.2)."""
        return Box.around(self.boxes)


WHOLE_IMAGE = Grounded((WHOLE,), "whole")


@dataclass(frozen=True, slots=True)
class Dropped:
    """A question that was left out, and the word or phrase that caused it."""

    reason: Reason
    detail: str = ""


class _DropError(Exception):
    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.dropped = Dropped(reason, detail)


@dataclass(frozen=True, slots=True)
class Hints:
    """What the annotations say about one question: its objects, its answer's, its region and the phrase."""

    question: Sequence[Thing] = ()
    answer: Sequence[Thing] = ()
    region: Box | None = None
    phrase: str = ""


def ground(question: str, answer: str, scene: Scene, hints: Hints | None = None) -> Grounded | Dropped:
    """The region of one question, or why it is dropped."""
    hints = hints or Hints()
    config = scene.config
    bare = re.sub(r"\s+", " ", question.strip().lower()).rstrip("?.! ")
    if not bare or not answer.strip():
        return Dropped(Reason.EMPTY)
    reply = " ".join(answer.lower().split()).rstrip("?.! ")
    if any(p.fullmatch(bare) for p in config.not_visual) or any(
        p.fullmatch(reply) for p in config.no_answers
    ):
        return Dropped(Reason.NOT_VISUAL)
    if any(pattern.fullmatch(bare) for pattern in config.global_questions):
        if re.search(r"\d\s*:\s*\d|o'?\s?clock", answer.lower()):  # read from a clock, not from the light
            bare = "what does the clock say"
        else:
            return WHOLE_IMAGE if config.whole_image else Dropped(Reason.GLOBAL)
    if reply == "no" and re.match("(is|are) there ", bare):
        if hints.question:  # the region that shows that there is none
            boxes, names, ids = zip(*((one.box, one.names[0], one.id) for one in hints.question), strict=True)
            return Grounded(boxes, "given", names, ids)
        # Only the whole image shows it.
        return WHOLE_IMAGE if config.whole_image else Dropped(Reason.GLOBAL)
    try:
        grounded = _Search(config.in_photo.sub("", bare).strip(), answer, scene, hints).run()
    except _DropError as failure:
        return failure.dropped
    box = grounded.box
    if min(box.x1 - box.x0, box.y1 - box.y0) < config.min_side:
        return Dropped(Reason.TOO_SMALL)
    return grounded


class _Search:
    """One question in the making: what it names so far."""

    def __init__(self, question: str, answer: str, scene: Scene, hints: Hints) -> None:
        self.scene, self.hints, self.config, self.words = scene, hints, scene.config, scene.config.words
        known = scene.known
        self.question = read(question, known, self.words, scene.adjectives)
        self.answer = read(answer, known, self.words, scene.adjectives)
        self.found: dict[int, Thing] = {thing.id: thing for thing in [*hints.question, *hints.answer]}
        self.done: dict[int, list[Thing]] = {}
        self.phrase = {self.words.name([token]) for token in self.words.tokens(hints.phrase)}

    def run(self) -> Grounded:
        """The region of the question; raises _DropError."""
        self._refuse_words()
        for mention in self.question.mentions:
            self._find(mention, self.question, Reason.AMBIGUOUS, Reason.NOT_ANNOTATED)
        if self._check_count():
            return self._whole()
        whole = not self.hints.answer and self._find_answer()
        self._check_color()
        if whole:
            return self._whole()
        if not self.found and self.hints.region is None:
            raise _DropError(Reason.NO_OBJECT)
        for thing in self.hints.question:
            self._distinct(
                [t for name in thing.names for t in self.scene.called(self.words.name(name))], thing
            )
        boxes = [thing.box for thing in self.found.values()]
        how = "given" if self.hints.question or self.hints.answer else "matched"
        if self.hints.region is not None:
            boxes, how = [*boxes, self.hints.region], "region" if how == "matched" else how
        names = tuple(thing.names[0] for thing in self.found.values())
        return Grounded(tuple(boxes), how, names, tuple(self.found))

    def _refuse_words(self) -> None:
        """Fail at a word that compares ("the other man") or asks for a scene ("the house behind the car").

        "The house" as a mere place ("in the house") is no scene, nor where the question names nothing else.
        """
        tokens, labels = self.question.tokens, self.question.labels
        for index, (token, label) in enumerate(zip(tokens, labels, strict=True)):
            if token in self.words.relative and tokens[index + 1 : index + 2] != ["to"]:
                raise _DropError(Reason.AMBIGUOUS, token)
            start = len(re.sub("[DAC]+$", "", labels[:index]))
            is_place = tokens[start - 1 : start] and tokens[start - 1] in self.words.places
            continues = labels[index + 1 : index + 2] in ("N", "A", "U")  # "the office chair"
            if label == "R" and self.question.mentions and not (is_place or continues):
                raise _DropError(Reason.NOT_ANNOTATED, token)

    def _whole(self) -> Grounded:
        if not self.config.whole_image:
            raise _DropError(Reason.GLOBAL)
        return WHOLE_IMAGE

    def _find(self, mention: Mention, reading: Reading, ambiguous: Reason, missing: Reason) -> list[Thing]:
        """The things a mention means, added to what was found; raises _DropError with one of two reasons."""
        if id(mention) in self.done:
            return self.done[id(mention)]
        self.done[id(mention)] = []  # an owner that comes back to its part
        name, things = self._candidates(mention)
        owner = self._owner(mention, reading, ambiguous, missing)
        is_part = name in self.words.parts
        try:
            if not things:
                raise _DropError(missing, mention.text)
            chosen = self._choose(mention, name, things, owner, ambiguous)
        except _DropError:
            if is_part and owner:
                chosen = owner
            elif not things and (name in self.phrase or (self.hints.question and reading is self.question)):
                chosen = []  # the annotations list what the question needs, without this
            else:
                raise
        else:
            if is_part and owner and not any(self._inside(thing.box, owner) for thing in chosen):
                chosen = owner
        self.found.update((thing.id, thing) for thing in chosen)
        self.done[id(mention)] = chosen
        return chosen

    def _candidates(self, mention: Mention) -> tuple[str, list[Thing]]:
        """The longest name in a mention's last words that something carries, and the things that carry it."""
        for length in range(mention.head, 0, -1):
            name = self.words.name(mention.words[-length:])
            if things := self.scene.called(name):
                return name, things
        return self.words.name(mention.words[-1:]), []

    def _owner(self, mention: Mention, reading: Reading, ambiguous: Reason, missing: Reason) -> list[Thing]:
        """The things that a mention is a part of, lies on or belongs to; empty when the text names none."""
        owner, head = mention.owner, self.words.name(mention.words[-1:])
        if owner is None and head in self.words.parts and self.words.owning & set(reading.tokens):
            others = [m for m in reading.mentions if self.words.name(m.words[-1:]) not in self.words.parts]
            owner = others[0] if len(others) == 1 else None
        if owner is None:
            return []
        if (
            owner not in reading.mentions
        ):  # the "car" of "car door" tells which door, and need not be enclosed
            if head not in self.words.parts:
                return []
            name, things = self._candidates(owner)
            return self._choose(owner, name, things, [], ambiguous) if things else []
        return self._find(owner, reading, ambiguous, missing)

    def _choose(
        self, mention: Mention, name: str, things: list[Thing], owner: list[Thing], ambiguous: Reason
    ) -> list[Thing]:
        """Which of the candidates a mention means; raises _DropError when that is not clear."""
        clusters = self._clusters(things, name)
        if mention.number == "plural" or mention.counted:
            return self._choose_plural(mention, name, clusters, owner, ambiguous)
        picked, narrowed = self._narrow(mention, clusters, owner)
        if len(picked) != 1 or picked[0][0].group:
            raise _DropError(ambiguous, mention.text)
        if name in self.scene.plural_names and name not in self.words.stuff and not narrowed:
            raise _DropError(ambiguous, f"{mention.text}: the image has several")
        return picked[0]

    def _choose_plural(
        self, mention: Mention, name: str, clusters: list[list[Thing]], owner: list[Thing], ambiguous: Reason
    ) -> list[Thing]:
        """All of the things that a plural means."""
        if owner and (inside := [c for c in clusters if self._inside(box_around(c), owner)]):
            clusters = inside
        clusters = self._narrow_color(mention, clusters) or clusters
        clusters = self._on_side(mention, clusters) or clusters
        groups = [cluster for cluster in clusters if cluster[0].group]
        singles = len(clusters) - len(groups)
        if name in self.words.pairs and len(clusters) > (1 if groups else 2):
            raise _DropError(ambiguous, mention.text)
        both_forms = any(has_both_forms(thing, self.words) for cluster in clusters for thing in cluster)
        if (
            not mention.counted
            and singles < 2
            and not groups
            and not both_forms
            and name not in self.words.stuff
        ):
            raise _DropError(Reason.COUNT, mention.text)
        if mention.count and not mention.counted and not groups and singles != mention.count:
            raise _DropError(Reason.COUNT, mention.text)
        return [thing for cluster in clusters for thing in cluster]

    def _narrow(
        self, mention: Mention, clusters: list[list[Thing]], owner: list[Thing]
    ) -> tuple[list[list[Thing]], bool]:
        """The clusters that fit a mention's colour, owner and side, and whether any of these was given."""
        narrowed = False
        colored = self._narrow_color(mention, clusters)
        if colored is not None:
            clusters, narrowed = colored, True
        if owner:
            inside = [cluster for cluster in clusters if self._inside(box_around(cluster), owner)]
            if len(inside) == 1:
                clusters, narrowed = inside, True
        if mention.side:
            clusters, narrowed = self._on_side(mention, clusters), True
        return clusters, narrowed

    def _on_side(self, mention: Mention, clusters: list[list[Thing]]) -> list[list[Thing]]:
        """The clusters whose middle is in the half of the image that a mention names, if it names one."""
        if mention.side is None:
            return clusters
        boxes = [(cluster, box_around(cluster)) for cluster in clusters]
        return [cluster for cluster, box in boxes if (box.x0 + box.x1 < 1) == (mention.side == "left")]

    def _narrow_color(self, mention: Mention, clusters: list[list[Thing]]) -> list[list[Thing]] | None:
        """The clusters annotated with the colour or material that a mention names.

        None when it names none, or when a cluster has no such annotation; _DropError when all have others.
        """
        for kind in (self.words.colors, self.words.materials):
            named = {self._basic(word) for word in mention.modifiers if word in kind}
            if not named:
                continue
            annotated = [self._marks(cluster, kind) for cluster in clusters]
            if any(not marks for marks in annotated):
                return None
            fitting = [c for c, marks in zip(clusters, annotated, strict=True) if named & marks]
            if not fitting:
                raise _DropError(Reason.CONTRADICTED, mention.text)
            return fitting
        return None

    def _marks(self, cluster: Sequence[Thing], kind: frozenset[str]) -> set[str]:
        """The colours (or materials) that a thing is annotated with, in its attributes or names."""
        texts = [text for thing in cluster for text in (*thing.attributes, *thing.names)]
        return {self._basic(token) for text in texts for token in self.words.tokens(text) if token in kind}

    def _basic(self, word: str) -> str:
        return self.words.color(word) or word.removesuffix("en").removesuffix("s")

    def _clusters(self, things: Sequence[Thing], name: str) -> list[list[Thing]]:
        """Things grouped so that several boxes of one real object come together."""
        clusters: list[list[Thing]] = []
        for thing in sorted(things, key=lambda thing: -thing.box.area):
            same = [
                cluster for cluster in clusters if any(self._same(thing, other, name) for other in cluster)
            ]
            clusters = [cluster for cluster in clusters if not any(cluster is merged for merged in same)]
            clusters.append([other for cluster in same for other in cluster] + [thing])
        return clusters

    def _same(self, first: Thing, second: Thing, name: str) -> bool:
        """Whether two boxes of one name are the same thing, drawn twice."""
        if first.group != second.group:
            return False
        if name in self.words.stuff and share(first.box, second.box) >= self.config.same_stuff_inside:
            return True
        return first.box.iou(second.box) >= self.config.same_object_iou

    def _inside(self, box: Box, owner: Sequence[Thing]) -> bool:
        return share(box, box_around(owner)) >= self.config.part_inside

    def _distinct(self, things: Sequence[Thing], given: Thing) -> None:
        """_DropError unless a given object is the only one of its name, or a group."""
        singles = [thing for thing in things if not thing.group]
        if (
            not given.group
            and len(self._clusters(singles, given.names[0])) > 1
            and not self.question.mentions
        ):
            raise _DropError(Reason.AMBIGUOUS, given.names[0])

    def _check_count(self) -> bool:
        """For "how many": whether the whole image is needed, since fewer are annotated than counted."""
        for mention in self.question.mentions:
            if not mention.counted:
                continue
            clusters = self._clusters(self.done[id(mention)], self._candidates(mention)[0])
            groups = any(cluster[0].group for cluster in clusters)
            numbers = [
                self.words.numbers.get(t) or (int(t) if t.isdigit() else None) for t in self.answer.tokens
            ]
            answered = next((number for number in numbers if number), None)
            if (groups and answered != 1) or answered == len(clusters):
                continue
            if len(self.question.mentions) == 1 and self.question.tokens[-1] in self.config.count_ends:
                return True
            raise _DropError(Reason.COUNT, mention.text)
        return False

    def _check_color(self) -> None:
        """Fail when the answer names a colour and the thing in question is annotated with others only."""
        mentions, tokens = self.question.mentions, set(self.question.tokens)
        if not (self.config.check_colors and mentions and tokens & {"color", "colour", "colors", "colours"}):
            return
        owned = [mention for mention in mentions[1:] if mention.owner is mentions[0]]
        target = owned[0] if owned and "'s" in tokens else mentions[0]
        name, candidates = self._candidates(target)
        if name == "person" or name in self.words.kinds["person"]:
            return  # their colours are those of what they wear, or of their skin
        things = [thing for thing in self.done[id(target)] if thing in candidates]
        answered = {self._basic(token) for token in self.answer.tokens if token in self.words.colors}
        annotated = self._marks(things, self.words.colors)
        if answered and annotated and not answered & annotated:
            raise _DropError(Reason.CONTRADICTED, " ".join(sorted(annotated)))

    def _find_answer(self) -> bool:
        """Find what the answer names, where it is needed; whether the whole image is needed instead."""
        asks = needed_from_answer(self.question, self.words)
        if not asks:
            return False
        tokens = set(self.answer.tokens)
        if tokens & {"nobody", "nothing", "none"} or self.answer.tokens[:2] == ["no", "one"]:
            return False
        outside = asks == "where" or not self.found or bool(self.words.outside & set(self.question.tokens))
        for mention in self.answer.mentions:
            try:
                self._find(mention, self.answer, Reason.AMBIGUOUS_ANSWER, Reason.ANSWER_NOT_ANNOTATED)
            except _DropError as failure:
                missing = failure.dropped.reason is Reason.ANSWER_NOT_ANNOTATED
                part = self.words.name(mention.words[-1:]) in self.words.parts and self.found
                if not missing or (outside and not part):
                    raise
        is_place = bool(tokens & (self.words.scenes | self.words.positions)) or "R" in self.answer.labels
        asks_place = asks == "where" or not self.question.mentions
        return is_place and asks_place and not self.answer.mentions
