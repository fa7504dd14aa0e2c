"""docs/nano.md has the figures of results/data/nano, as its commands write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms.results.report import choices, claims, layouts

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "nano.md").read_text(encoding="utf-8")


def table(mark: str) -> str:
    return PAGE.split(f"<!-- {mark} -->\n")[1].split("<!-- end -->")[0]


def figures(name: str) -> Any:
    return json.loads((ROOT / "results" / "data" / "nano" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("mark", "name", "written"),
    [
        ("claims", "2026-11-28-cpu", claims.written),
        ("choices", "2026-11-28-cpu-choices", choices.written),
        ("layouts", "2026-11-28-cpu-layouts", layouts.written),
    ],
)
def test_tables_are_those_of_their_figures(mark: str, name: str, written: Callable[[Any], str]):
    assert table(mark) == written(figures(name))


def test_the_table_of_the_trees_has_its_figures():
    rows = [line.strip("|").split("|") for line in table("trees").strip().splitlines()[2:]]
    expected = [
        [run, kind, claims.gain_text(row)]
        for run, kinds in figures("2026-11-28-cpu-trees").items()
        for kind, row in kinds.items()
    ]
    assert [[row[0].strip(), row[1].strip(), row[5].strip()] for row in rows] == expected
