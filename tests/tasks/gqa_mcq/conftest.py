"""What the tests of gqa-mcq share: made-up questions, and how the file made of them is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COLORS = ["red", "blue", "green", "white", "black", "brown", "white", "white"]
THINGS = ["dog", "cup", "plate", "lamp", "bench", "bird", "pizza", "bag"]


def make_row(
    question: str, answer: str, image: str, types: str, group: str | None = None, program: Any = ()
) -> Any:
    """A question as GQA has it. types: "structural semantic detailed"."""
    names = dict(zip(("structural", "semantic", "detailed"), types.split(), strict=True))
    groups = {"global": group, "local": None}
    return {
        "question": question,
        "answer": answer,
        "imageId": image,
        "types": names,
        "groups": groups,
        "semantic": list(program),
    }


@pytest.fixture
def row() -> Callable[..., Any]:
    """A question as GQA has it, see `make_row`."""
    return make_row


@pytest.fixture
def rows() -> dict[str, Any]:
    """Eight colours, eight things that have a class and eight that have none, yes and no, one choice."""
    rows = {}
    for number, (color, thing) in enumerate(zip(COLORS, THINGS, strict=True)):
        image = f"n{number}"
        rows[f"c{number}"] = make_row(
            f"What color is it, {number}?", color, image, "query attr color", "color"
        )
        rows[f"t{number}"] = make_row(f"What is it, {number}?", thing, image, "query obj category", "thing")
        rows[f"r{number}"] = make_row(f"What is on it, {number}?", thing, f"m{number}", "query rel relS")
    rows["y"] = make_row("Is it a dog?", "yes", "n0", "verify obj exist")
    rows["n"] = make_row("Is it a cat?", "no", "n0", "verify obj exist")
    steps = [
        {"operation": "select", "dependencies": [], "argument": "cup (12)"},
        {"operation": "choose color", "dependencies": [0], "argument": "blue|pink"},
    ]
    rows["o"] = make_row("Is the cup blue or pink?", "blue", "n1", "choose attr chooseAttr", None, steps)
    return rows


@pytest.fixture
def questions(tmp_path: Path, rows: dict[str, Any]) -> Path:
    """`rows` as the official file."""
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


@pytest.fixture
def lines() -> Callable[[Path], dict[str, dict[str, Any]]]:
    """Reads a file that was made: its lines by their question's id.

    Each with its options, cut out as the authors' evaluation cuts them out.
    """

    def read(file: Path) -> dict[str, dict[str, Any]]:
        found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len({line["question_id"] for line in found}) == len(found)
        cut = [[option[3:] for option in line["question"].split("\n")[1:]] for line in found]
        return {
            line["question_id"]: line | {"options": options} for line, options in zip(found, cut, strict=True)
        }

    return read
