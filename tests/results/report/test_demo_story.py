"""The last lines of the demo, from samples whose outcomes are known."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "demo_story.py"


@pytest.fixture(scope="module")
def story() -> Any:
    spec = util.spec_from_file_location("demo_story", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["demo_story"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["demo_story"]


def samples(rescued: int, lost: int, both: int) -> pd.DataFrame:
    """Macro wrong and micro correct, chosen; macro correct and micro chosen in its place; both correct."""
    rows = [(0.0, 100.0, 100.0, 2.0, 0.1)] * rescued + [(100.0, 0.0, 0.0, 0.5, 0.4)] * lost
    rows += [(100.0, 100.0, 100.0, 0.1, 0.1)] * both
    table = pd.DataFrame(rows, columns=["macro", "micro", "selected", "nll_macro", "nll_micro"])
    return table.assign(doc_id=range(10, 10 + len(table)))


def test_the_winner_is_named_with_its_reason_where_the_difference_is_sure(story: Any):
    detail = story.PARTS[0]
    line = story.line(detail, samples(12, 2, 6))
    assert line.split("  ")[-1] == f"micro wins: {detail.reasons['micro']}"
    assert [text in line for text in ("macro  40", "micro  90", "(12 of 14)")] == [True] * 3
    assert story.line(detail, samples(2, 1, 17)).endswith("neither wins")
    assert "micro wins" in story.line(story.PARTS[2], samples(12, 2, 6))


def test_the_example_is_one_that_the_better_pathway_alone_answers(story: Any):
    table = samples(3, 1, 2)
    table.loc[1, "nll_macro"] = 5.0
    assert story.example(table) == 11
    assert story.example(samples(0, 0, 2)) == 10
