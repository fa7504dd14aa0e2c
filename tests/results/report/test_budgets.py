"""Accuracy against tokens: the points of runs that were made by hand."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from dualfocus_lmms.results.report import budgets, plots

MODEL = {"pretrained": "m", "pathway": "both"}


def run(
    macro: list[float], selected: list[float], tokens: tuple[float, float | None], first: int = 0
) -> pd.DataFrame:
    """Samples with the same tokens in macro, and in micro with half as many again in locate."""
    second = tokens[1]
    return pd.DataFrame(
        {
            "task": "t",
            "doc_id": range(first, first + len(macro)),
            "macro": macro,
            "selected": selected,
            "tokens_macro": tokens[0],
            "tokens_locate": None if second is None else second / 2,
            "tokens_micro": second,
        }
    ).astype({"tokens_locate": float, "tokens_micro": float})


SMALL = run([0, 0, 100, 0], [100, 0, 100, 0], (100, 80))
LARGE = run([0, 100, 100, 0], [100, 100, 100, 0], (400, 200))


def points(runs: dict[str, pd.DataFrame], **settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    frame = budgets.by_budget(runs, {name: MODEL | settings.get(name, {}) for name in runs}).frame
    if frame.empty:
        return []
    return [tuple(row) for row in frame[["answers", "run", "tokens per question", "score"]].to_numpy()]


def test_each_run_is_a_point_of_both_lines():
    found = points({"large": LARGE, "small": SMALL}, large={"max_pixels": 800}, small={"max_pixels": 200})
    assert found == [
        ("macro only", "small", 100, 25),
        ("macro only", "large", 400, 50),
        ("DualFocus", "small", 220, 50),
        ("DualFocus", "large", 700, 75),
    ]


def test_a_run_of_the_macro_pathway_is_on_its_line_alone():
    alone = run([0, 100, 100, 100], [0, 100, 100, 100], (900, None))
    found = points({"small": SMALL, "alone": alone}, alone={"pathway": "macro", "max_pixels": 1600})
    assert found == [
        ("macro only", "small", 100, 25),
        ("macro only", "alone", 900, 75),
        ("DualFocus", "small", 220, 50),
    ]


def test_scores_are_those_of_the_samples_of_all_runs():
    part = run([100, 0], [100, 100], (400, 200), first=2)
    found = points({"small": SMALL, "part": part}, part={"crop_pixels": "auto"})
    assert [row[3] for row in found] == [50, 50, 50, 100]
    assert points({"small": SMALL, "part": part.assign(task="u")}, part={"crop_pixels": "auto"}) == []


def test_no_curve_of_runs_that_differ_otherwise_or_not_in_tokens():
    both = {"small": SMALL, "large": LARGE}
    assert points(both) == []
    assert points(both, large={"pretrained": "other", "max_pixels": 800}) == []
    assert points(both, large={"select": "release", "max_pixels": 800}) == []
    assert points({"small": SMALL, "same": SMALL}, same={"max_pixels": 800}) == []


def test_the_plot_has_both_lines():
    settings = {"small": MODEL, "large": MODEL | {"max_pixels": 800}}
    svg = plots.tokens(budgets.by_budget({"small": SMALL, "large": LARGE}, settings).frame)
    assert svg is not None
    assert all(word in svg for word in (budgets.MACRO, budgets.BOTH, "--macro", "--ink"))
    assert plots.tokens(pd.DataFrame()) is None


def test_the_table_names_the_budget():
    table = budgets.by_budget(
        {"small": SMALL, "large": LARGE}, {"small": MODEL, "large": MODEL | {"max_pixels": 800}}
    )
    assert table.frame["max_pixels"].tolist() == ["-", "800", "-", "800"]
    assert table.frame["samples"].tolist() == [4] * 4
    assert table.frame["tokens per question"].iloc[-1] == pytest.approx(700)
