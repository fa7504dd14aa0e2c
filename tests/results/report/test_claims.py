"""The claims of the paper from runs of df_nano: what is counted, and the page that shows it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dualfocus_lmms.results.report import claims
from dualfocus_lmms.tasks.nano.docs import questions

WriteRun = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, write_nano: WriteRun, random_scripts) -> list[Path]:
    folder, chance = tmp_path_factory.mktemp("runs"), random.Random(0)
    scripts = {kind: random_scripts(chance, kind, 60) for kind in ("detail", "exist", "global")}
    fewer = {kind: scripted[:30] for kind, scripted in scripts.items()}
    return [
        write_nano(folder / "seed-0", scripts),
        write_nano(folder / "seed-1", scripts),
        write_nano(folder / "shift-5", fewer, settings={"box_shift": 5}),
    ]


def test_counts_and_relations_stand_apart_and_together(runs: list[Path]):
    samples = claims.answers(runs[0])
    kinds = claims.by_kind(samples)
    assert {kind: row["n"] for kind, row in kinds.items()} == {
        "detail": 60, "exist": 60, "count": 20, "relation": 40, "global": 60, "all": 180,
    }  # fmt: skip
    for row in kinds.values():
        gain = row["against macro"]
        assert gain["value"] == pytest.approx(100 * (gain["gained"] - gain["lost"]) / row["n"])
        assert row["oracle"]["value"] >= row["selected"]["value"]
        assert row["macro"]["low"] <= row["macro"]["value"] <= row["macro"]["high"]


def test_a_near_miss_has_the_colour_or_the_shape_of_something():
    docs = questions("test", "exist")[:100]
    near = [claims.is_near_miss(doc) for doc in docs]
    assert not any(some for some, doc in zip(near, docs, strict=True) if doc["answers"] == ["yes"])
    assert sum(near) > 40


def test_f1_is_that_of_yes(runs: list[Path]):
    asked = claims.answers(runs[0])
    asked = asked[asked["kind"] == "exist"]
    true = asked["answers"].map(lambda answers: answers[0]) == "yes"
    said = true == (asked["selected"] >= 50)
    hits = (true & said).sum()
    found = claims.existence(asked)["all"]
    assert found["selected"] == pytest.approx(100 * 2 * hits / (true.sum() + said.sum()))
    assert found["gain"] == pytest.approx(found["selected"] - found["macro"])


def test_skipping_is_of_58_percent(runs: list[Path]):
    assert claims.skipping(claims.answers(runs[0]))["skipped"] == pytest.approx(58, abs=1)


def test_a_page_gets_its_tables(runs: list[Path], tmp_path: Path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- claims -->\nold\n<!-- end -->\nafter\n")
    arguments = [*map(str, runs), "--json", str(tmp_path / "figures.json"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["claims", *arguments])
    claims.main()
    text = page.read_text()
    assert text.startswith("before\n<!-- claims -->\n| questions ")
    assert text.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in text
    assert text.split("<!-- claims -->\n")[1].split("<!-- end -->")[0].strip() in capsys.readouterr().out
    header = next(line for line in text.splitlines() if line.startswith("| claim"))
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["claim", "wanted", "seed-0", "seed-1"]
    assert any(line.startswith("| shift-5") for line in text.splitlines())
    assert (tmp_path / "figures.json").is_file()
