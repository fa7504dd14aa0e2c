"""GQA's questions, and wrong options without any model: what a question names, or answers of its kind.

Knows no file of results and no endpoint (see `gqa_mcq`, `gqa_endpoint`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.tasks.common.letters import normalise
from dualfocus_lmms.tasks.common.official import read_json
from dualfocus_lmms.tasks.common.sources import text_field

DISTRACTORS = 3  # with the answer four options, A to D, as in the published file

Kind = tuple[str, ...]


class NoDistractorsError(Exception):
    """Why one question got no wrong options. It is counted and listed in the report; the build continues."""


@dataclass(frozen=True)
class GqaQuestion:
    """One question of GQA's files. image: the file's stem. group: the answer's class ("color"), if any.

    program: the question's functional program, operations with `operation`, `argument` and `dependencies`.
    """

    id: str
    text: str
    answer: str
    image: str
    structural: str
    semantic: str
    detailed: str
    group: str | None = None
    program: tuple[dict[str, Any], ...] = ()


Distractors = Callable[[GqaQuestion], list[str]]
"""Wrong options of a question, one to three; NoDistractorsError when there are none."""


def read_questions(file: str | Path) -> list[GqaQuestion]:
    """The questions of testdev_balanced_questions.json (or another of GQA's files), in its order."""
    rows = read_json(Path(file))
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{file}: an object of question id to question is expected, as in GQA's own files.")
    return [_question(id, row, f"{file}, question {id}") for id, row in rows.items()]


def _question(id: str, row: Any, where: str) -> GqaQuestion:
    if not isinstance(row, dict) or not isinstance(row.get("types"), dict):
        raise UserError(f"{where}: an object with question, answer, imageId and types is expected.")
    groups, program = row.get("groups") or {}, row.get("semantic") or []
    group = groups.get("global") if isinstance(groups, dict) else 0
    if not isinstance(group, str | None) or not isinstance(program, list) or not all(map(_is_step, program)):
        raise UserError(f"{where}: 'groups' and 'semantic' must be as in GQA's own files, or absent.")
    types = {name: text_field(row["types"], name, where) for name in ("structural", "semantic", "detailed")}
    return GqaQuestion(
        id=id,
        text=" ".join(text_field(row, "question", where).split()),
        answer=text_field(row, "answer", where),
        image=text_field(row, "imageId", where),
        group=group or None,
        program=tuple(program),
        **types,
    )


def _is_step(step: Any) -> bool:
    """Whether it is an operation of a program, with the numbers of the steps that it needs."""
    needed = (step.get("dependencies") or []) if isinstance(step, dict) else None
    return isinstance(needed, list) and all(isinstance(number, int) for number in needed)


# --- options that the question itself names ----------------------------------------------------------------


def named_options(question: GqaQuestion) -> list[str]:
    """The wrong options of a question that names its own ("blue or brown?", yes for no); else empty.

    >>> named_options(GqaQuestion("1", "Is it red?", "no", "n1", "verify", "attr", "verifyAttr"))
    ['yes']
    """
    if question.answer in ("yes", "no"):
        return ["no" if question.answer == "yes" else "yes"]
    for alternatives in (_alternatives(question), [_side(text) for text in _alternatives(question)]):
        if question.answer in alternatives:
            return [text for text in alternatives if text != question.answer]
    return []


def _alternatives(question: GqaQuestion) -> list[str]:
    """What the program's last operation chooses from: "choose color: blue|brown", or two things compared."""
    if not question.program:
        return []
    last = question.program[-1]
    if not str(last.get("operation", "")).startswith("choose"):
        return []
    for part in str(last.get("argument", "")).split(","):
        if "|" in part:
            return [text.strip() for text in part.split("|")]
    compared = last.get("dependencies") or ()
    return [_name(question.program, index) for index in compared] if len(compared) == 2 else []


def _side(text: str) -> str:
    """ "left" for "to the left of", the form in which GQA answers."""
    return text.removeprefix("to the ").removesuffix(" of")


def _name(program: tuple[dict[str, Any], ...], index: int) -> str:
    """The thing a step of a program stands for: that of "select" or "relate", behind any filters."""
    while 0 <= index < len(program):
        step = program[index]
        if step.get("operation") in ("select", "relate"):
            return str(step.get("argument", "")).split(",")[0].split(" (")[0].strip()
        before = (step.get("dependencies") or [-1])[0]
        index = before if before < index else -1
    return ""


# --- answers of other questions ----------------------------------------------------------------------------

# Two words of one line may both be correct.
_ALIKE = [
    frozenset(line.split())
    for line in (
        "woman lady girl female person people",
        "man guy gentleman boy male person people",
        "child kid boy girl baby toddler person people",
        "gray grey silver",
        "tan beige cream khaki",
        "tan brown",
        "blond blonde yellow",
        "couch sofa loveseat",
        "bike bicycle",
        "bike motorcycle motorbike",
        "phone cellphone smartphone",
        "tv television screen monitor",
        "large big huge giant",
        "small little tiny",
        "plane airplane jet",
    )
]
_IRREGULAR = {"men": "man", "women": "woman", "children": "child"}
_ENDING = re.compile(r"(?<=\w{3})(?:es|s|e)$")


def alike(first: str, second: str) -> bool:
    """Whether two answers may both be correct: "table" and "coffee table", near synonyms, the same.

    >>> alike("Shoes", "shoe"), alike("lady", "woman"), alike("man", "woman")
    (True, True, False)
    """
    (first_stems, first_groups), (second_stems, second_groups) = _signature(first), _signature(second)
    return (
        first_stems <= second_stems
        or second_stems <= first_stems
        or not first_groups.isdisjoint(second_groups)
    )


@cache
def _signature(text: str) -> tuple[frozenset[str], frozenset[int]]:
    """Stems of a text's words, and which lines of _ALIKE its last word is in."""
    words = [_IRREGULAR.get(word, word) for word in normalise(text).split()]
    groups = (number for number, line in enumerate(_ALIKE) if words and words[-1] in line)
    return frozenset(_ENDING.sub("", word) for word in words), frozenset(groups)


class SameKind:
    """Distractors from the answers of other questions of the same kind, more common answers more often.

    The kind is the answer's class (colours with colours): GQA's own, or the one that the answer has in other
    questions; without one it is the question's type, narrow to wide. Answers that may be correct, too, are
    left out: those `alike`, and, for all but attributes, what other questions on the image are answered with.
    The same questions and seed give the same distractors.
    """

    def __init__(self, questions: Iterable[GqaQuestion], seed: int) -> None:
        self.seed = seed
        self._class_of = _classes(questions := list(questions))
        self._answers: dict[Kind, Counter[str]] = defaultdict(Counter)
        self._on_image: dict[str, set[str]] = defaultdict(set)
        for question in questions:
            self._on_image[question.image].add(question.answer)
            for kind in self._kinds(question):
                self._answers[kind][question.answer] += 1

    def __call__(self, question: GqaQuestion) -> list[str]:
        rng = Random(f"{self.seed}:{question.id}:distractors")
        unfit = set() if question.semantic == "attr" else self._on_image[question.image]
        for kind in self._kinds(question):
            fit = (answer for answer in _drawn(self._answers[kind], rng) if answer not in unfit)
            if chosen := unlike(question.answer, fit):
                return chosen
        raise NoDistractorsError(
            f"no other question of its kind has an answer that differs from {question.answer!r}"
        )

    def _kinds(self, question: GqaQuestion) -> Iterator[Kind]:
        """What a question's distractors may come from, narrow to wide. Yes and no have no kind."""
        if question.answer in ("yes", "no"):
            return
        if name := question.group or self._class_of.get(question.answer):
            yield ("class", name)
        yield ("detailed", question.structural, question.detailed)
        yield ("semantic", question.structural, question.semantic)
        yield ("structural", question.structural)


def unlike(answer: str, candidates: Iterable[str]) -> list[str]:
    """The first three candidates (or fewer) that are alike neither to the answer nor to one another."""
    chosen: list[str] = []
    for candidate in candidates:
        if not any(alike(candidate, other) for other in (answer, *chosen)):
            chosen.append(candidate)
            if len(chosen) == DISTRACTORS:
                break
    return chosen


def _classes(questions: Iterable[GqaQuestion]) -> dict[str, str]:
    """Each answer's most frequent class; the first by name of several."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        if question.group:
            counts[question.answer][question.group] += 1
    return {answer: min(found, key=lambda name: (-found[name], name)) for answer, found in counts.items()}


def _drawn(counts: Counter[str], rng: Random) -> list[str]:
    """All answers in a random order in which frequent ones tend to come first: draws without replacement."""
    keys = {answer: rng.random() ** (1 / counts[answer]) for answer in sorted(counts)}
    return sorted(keys, key=keys.__getitem__, reverse=True)
