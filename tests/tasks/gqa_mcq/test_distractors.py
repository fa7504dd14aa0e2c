"""Distractors of a question's kind, and none that may be right as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.tasks.gqa import mcq as gqa_mcq
from dualfocus_lmms.tasks.gqa.distractors import GqaQuestion, alike, named_options

Lines = Callable[[Path], dict[str, Any]]
build = partial(gqa_mcq.build, progress=False)


def answers(rows: dict[str, Any], kind: str) -> set[str]:
    """Those of the questions whose id begins with `kind`."""
    return {row["answer"] for id, row in rows.items() if id[0] == kind}


def test_distractors_are_of_the_answers_kind(
    questions: Path, tmp_path: Path, rows: dict[str, Any], lines: Lines
):
    build(questions, tmp_path / "out.jsonl")
    colors, things = answers(rows, "c"), answers(rows, "t")
    expected = {"c": colors, "t": things, "r": things, "y": {"yes", "no"}, "n": {"yes", "no"}}
    for id, line in lines(tmp_path / "out.jsonl").items():
        assert set(line["options"]) <= expected.get(id[0], {"blue", "pink"})
        assert len(set(line["options"])) == len(line["options"]) == (4 if id[0] in "ctr" else 2)


def test_an_answers_class_may_come_from_other_questions(
    tmp_path: Path, questions: Path, row: Callable[..., Any], rows: dict[str, Any], lines: Lines
):
    """Without a class of its own "dog" is a thing, as in other questions, and no place of the same type."""
    things = answers(rows, "t")
    rows |= {
        f"p{number}": row("What is on it?", place, f"k{number}", "query rel relS", "place")
        for number, place in enumerate(["street", "beach", "field", "park"])
    }
    questions.write_text(json.dumps(rows), encoding="utf-8")
    build(questions, tmp_path / "out.jsonl")
    written = lines(tmp_path / "out.jsonl")
    assert set(written["r0"]["options"]) <= things
    assert set(written["p0"]["options"]) == {"street", "beach", "field", "park"}


def test_answers_that_may_be_correct_too_are_left_out(tmp_path: Path, row: Callable[..., Any], lines: Lines):
    """A plural, a synonym, one word more, another thing on the same image; another colour there is fine."""
    people = ["woman", "lady", "Man", "men", "old man", "surfer"]
    rows = {
        f"w{number}": row("Who is it?", person, f"n{number}", "query rel relS", "person")
        for number, person in enumerate(people)
    }
    rows["same"] = row("Who stands there?", "skater", "n0", "query rel relS", "person")
    rows["a"] = row("What color?", "red", "n0", "query attr color", "color")
    rows["b"] = row("What color is that?", "blue", "n0", "query attr color", "color")
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    options: dict[str, set[str]] = {id: set() for id in rows}
    for seed in range(20):
        build(file, tmp_path / f"{seed}.jsonl", seed=seed)
        for id, line in lines(tmp_path / f"{seed}.jsonl").items():
            options[id] |= set(line["options"])
            assert not ({"woman", "lady"} <= set(line["options"]))  # nor are two distractors alike
    assert options["w0"] == {"woman", "Man", "men", "old man", "surfer"}
    assert options["w2"] == {"Man", "woman", "lady", "surfer", "skater"}
    assert options["a"] == {"red", "blue"}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("table", "coffee table", True),
        ("Shoes.", "shoe", True),
        ("buses", "bus", True),
        ("women", "woman", True),
        ("couch", "sofa", True),
        ("person", "little boy", True),
        ("gray", "grey", True),
        ("man", "woman", False),
        ("left", "right", False),
        ("t-shirt", "shirt", False),
        ("red", "orange", False),
    ],
)
def test_alike(first: str, second: str, expected: bool):
    assert alike(first, second) is alike(second, first) is expected


SELECT = {"operation": "select", "dependencies": [], "argument": "man (1)"}
RELATE = {"operation": "relate", "dependencies": [0], "argument": "dog,near,s (2)"}
FILTER = {"operation": "filter color", "dependencies": [1], "argument": "black"}
CHOOSE = {"operation": "choose it", "dependencies": [0], "argument": ""}


@pytest.mark.parametrize(
    ("answer", "last", "expected"),
    [
        ("yes", {}, ["no"]),
        ("no", {}, ["yes"]),
        ("red", CHOOSE | {"argument": "red|dark blue"}, ["dark blue"]),
        ("right", CHOOSE | {"argument": "cup,to the left of|to the right of,s (7)"}, ["left"]),
        ("to the left of", CHOOSE | {"argument": "cup,to the left of|behind,s (7)"}, ["behind"]),
        ("dog", CHOOSE | {"dependencies": [0, 2]}, ["man"]),
        ("cat", CHOOSE | {"dependencies": [0, 2]}, []),
        ("red", {"operation": "query", "dependencies": [0], "argument": "color"}, []),
    ],
)
def test_named_options(answer: str, last: dict[str, Any], expected: list[str]):
    program = (SELECT, RELATE, FILTER, last)
    question = GqaQuestion("1", "?", answer, "n1", "choose", "attr", "chooseAttr", None, program)
    assert named_options(question) == expected


QUESTION = {
    "question": "Is it?",
    "answer": "yes",
    "imageId": "n1",
    "types": {"structural": "verify", "semantic": "obj", "detailed": "exist"},
    "groups": {"global": None, "local": None},
    "semantic": [],
}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"1": 5}',
        json.dumps({"1": {name: QUESTION[name] for name in ("question", "answer", "imageId")}}),
        json.dumps({"1": QUESTION | {"answer": ""}}),
        json.dumps({"1": QUESTION | {"types": {"structural": "verify"}}}),
    ],
)
def test_other_formats_raise(content: str, tmp_path: Path):
    (tmp_path / "questions.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError):
        build(tmp_path / "questions.json", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
