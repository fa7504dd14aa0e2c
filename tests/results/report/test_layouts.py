"""Questions about two things and about tiny ones: the kinds stand apart, and the page gets their table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dualfocus_lmms.results.report import layouts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, write_nano: Callable[..., Path], nano_scripts) -> Path:
    scripts = {"pairs_near": nano_scripts["detail"], "tiny": nano_scripts["exist"]}
    return write_nano(tmp_path_factory.mktemp("runs") / "model", scripts)


def test_each_kind_of_a_layout_is_counted_by_itself(run: Path):
    found = layouts.kinds_of(run)
    assert {kind: row["n"] for kind, row in found.items()} == {
        "near, same": 5, "near, larger": 5, "tiny, detail": 10,
    }  # fmt: skip
    tiny = found["tiny, detail"]
    assert (tiny["macro"]["value"], tiny["micro"]["value"], tiny["selected"]["value"]) == (70, 90, 90)


def test_a_page_gets_its_table(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- layouts -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(sys, "argv", ["layouts", str(run), "--page", str(page)])
    layouts.main()
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| model")
    ]
    assert [row[1:3] for row in cells] == [["near, same", "5"], ["near, larger", "5"], ["tiny, detail", "10"]]
