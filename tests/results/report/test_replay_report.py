"""The report of a run and a replay of it: paired figures, the rule by name, and where they differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dualfocus_lmms.results.report.build import report


@pytest.fixture(scope="session")
def both(
    tmp_path_factory: pytest.TempPathFactory, write_nano: Callable[..., Path], nano_scripts: dict[str, Any]
) -> Path:
    """The report of the run `first` and of a replay of it with select=macro."""
    folder = tmp_path_factory.mktemp("replays")
    write_nano(folder / "first", nano_scripts)
    results = json.loads((folder / "first" / "20261122_000000_results.json").read_text())
    given = {"trace": str(folder / "first" / "traces"), "select": "macro"}
    results["config"] = {"model": "dualfocus_replay", "model_args": given}
    (folder / "again").mkdir()
    (folder / "again" / "20261123_000000_results.json").write_text(json.dumps(results))
    report([folder / "first", folder / "again"], folder / "out", images=0)
    return folder / "out"


def test_the_figures_are_paired_and_the_rule_is_named(both: Path):
    first, again = pd.read_csv(both / "comparison.csv").to_dict("records")
    assert (first["select"], again["select"]) == ("ppl", "macro")
    assert (first["selected"], again["selected"], again["macro"]) == (90.0, 45.0, 45.0)
    assert (again["in both"], again["difference"]) == (20, -45.0)
    assert again["p"] == pytest.approx(2 / 2**9)  # nine questions, all in one direction
    assert set(pd.read_csv(both / "run2_samples.csv")["pathway"]) == {"macro"}
    assert "select=macro" in (both / "report.md").read_text(encoding="utf-8")


def differing(browser: Any, value: str) -> str:
    """How many samples are listed when a reader chooses this in the field Differs."""
    return browser.run(
        f"(() => {{ const field = document.getElementById('other'); field.value = '{value}';"
        "field.dispatchEvent(new Event('change')); field.dispatchEvent(new Event('input'));"
        "return document.getElementById('count').textContent; })()"
    )


def test_where_a_run_and_its_replay_differ(both: Path, browser: Any):
    browser.open(both / "report.html")
    browser.run("document.getElementById('tab-1').click()")
    assert differing(browser, "") == "20 samples"
    assert differing(browser, "verdict 0") == "9 samples"
    assert differing(browser, "answer 0") == "11 samples"  # two more were wrong either way
    assert "macro" in browser.run("document.querySelector('.answer.chosen').className")
    assert browser.errors == []
