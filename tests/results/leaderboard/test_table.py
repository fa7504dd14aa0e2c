"""The leaderboard: every number where it belongs, and never a measured one for a published one."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.cli.results import leaderboard as command
from dualfocus_lmms.results.leaderboard import records
from dualfocus_lmms.results.leaderboard.records import FOLDER, add, read_published, record
from dualfocus_lmms.results.leaderboard.table import FORMATS, leaderboard, readme, render, write
from dualfocus_lmms.results.runs import load_run

WriteRun = Callable[..., Path]
EVIL = "<script>x|y</script>"


@pytest.fixture
def folder(tmp_path: Path, write_run: WriteRun) -> Path:
    """Two published rows and one measured row of the task df_local; one published row of df_other."""
    paper = {"title": "Zoom", "short": "Zoom", "year": 2024, "url": "https://example.org/zoom"}
    columns = [
        {"printed": "A", "task": "df_local", "metric": "f1"},
        {"printed": "B", "task": "df_local", "metric": "accuracy"},
        {"printed": "C", "task": "df_other", "metric": "accuracy", "unit": "points"},
    ]
    rows = [
        {"row": "low", "model": EVIL, "method": "plain", "values": [12.5, 60.0, None]},
        {"row": "high", "model": "M", "method": "zoom", "values": [None, 80.0, -1.5]},
    ]
    published = {"paper": paper, "tables": [{"table": "table 9", "columns": columns, "rows": rows}]}
    numbers = tmp_path / "numbers"
    (numbers / "published").mkdir(parents=True)
    (numbers / "published" / "zoom.json").write_text(json.dumps(published), encoding="utf-8")
    run = load_run(write_run(tmp_path / "run", [100.0, 0.0, 100.0, 100.0]))
    add(record(run, "a test machine"), numbers)
    return numbers


def test_rows_of_a_task_with_the_best_on_top(folder: Path):
    table = leaderboard(folder, "df_local")
    assert list(table["accuracy"]) == [80.0, 75.0, 60.0]
    assert list(table["model"]) == ["M", "nano", EVIL]
    assert table["f1"].tolist()[-1] == 12.5
    assert table["f1"].isna().tolist() == [True, True, False]
    assert table["accuracy_stderr"].isna().tolist() == [True, False, True]


def test_published_and_measured_are_told_apart(folder: Path):
    table = leaderboard(folder, "df_local")
    assert list(table["source"]) == ["published, table 9", "measured, 2026-11-22", "published, table 9"]
    measured = table.iloc[1]
    assert measured["reference"].startswith("a test machine, commit ")
    assert (folder / measured["link"]).is_file()
    assert (measured["n"], measured["questions"]) == (4, 4)
    assert table.iloc[0]["link"] == "https://example.org/zoom"


def test_a_difference_is_no_score(folder: Path):
    table = leaderboard(folder, "df_other")
    assert "accuracy" not in table
    assert list(table["accuracy gain"]) == [-1.5]


def test_every_committed_row_has_a_source():
    table = leaderboard()
    assert len(table) > 100
    assert table["source"].str.match(r"published, .+|measured, \d{4}-\d\d-\d\d").all()
    assert table[["reference", "link", "model", "method"]].notna().all(axis=None)
    assert set(table.loc[table["source"].str.startswith("published"), "link"]) == {
        published.paper.url for published in read_published()
    }


def test_numbers_of_table_1_come_out_as_printed():
    table = leaderboard()
    rows = table[(table["source"] == "published, table 1") & (table["model"] == "LLaVA-1.5-7B")]
    rows = rows[rows["link"] == "https://arxiv.org/abs/2402.14767"]
    values = rows["accuracy"].fillna(rows["circular_accuracy"])
    found = dict(zip(zip(rows["method"], rows["task"], strict=True), values, strict=True))
    assert found == {
        ("plain", "df_seed_image"): 66.2,
        ("plain", "df_mmbench_en_dev"): 64.3,
        ("plain", "df_gqa_star"): 67.2,
        ("plain", "df_textvqa_val_ocr"): 58.2,
        ("DualFocus", "df_seed_image"): 68.9,
        ("DualFocus", "df_mmbench_en_dev"): 66.6,
        ("DualFocus", "df_gqa_star"): 69.3,
        ("DualFocus", "df_textvqa_val_ocr"): 62.0,
    }


def test_the_fastest_is_on_top():
    times = leaderboard(task="inference")["time (ms)"].tolist()
    assert times == sorted(times)


@pytest.mark.parametrize("task", [None, "df_local"])
def test_csv_is_read_back_as_the_same_table(folder: Path, task: str | None):
    table = leaderboard(folder, task)
    read = pd.read_csv(io.StringIO(render(table, "csv")))
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


class Cells(HTMLParser):
    """The tags of a page, and the texts of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data


def test_html_shows_texts_and_runs_none(folder: Path):
    page = Cells()
    page.feed(render(leaderboard(folder), "html"))
    assert "script" not in page.tags
    texts = [text.strip() for text in page.texts]
    assert texts.count(EVIL) == 1
    assert "75.00 ± 25.00" in texts


def test_markdown_keeps_its_columns(folder: Path):
    lines = render(leaderboard(folder, "df_local")).splitlines()
    bars = [line.replace("\\|", "").count("|") for line in lines if line.startswith("|")]
    assert len(bars) == 5  # headings, rule, three rows
    assert len(set(bars)) == 1
    assert "| 75.00 ± 25.00 |" in lines[5]
    assert " 80.0 |" in lines[4]
    assert "<script" not in "\n".join(lines)


def test_what_is_unknown_is_refused(folder: Path):
    with pytest.raises(UserError):
        leaderboard(folder, "df_nothing")
    with pytest.raises(UserError):
        render(leaderboard(folder), "pdf")
    with pytest.raises(UserError):
        leaderboard(folder / "published")


@pytest.fixture
def package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package with the numbers of `folder` as its own; what it lies in is returned."""
    own = tmp_path / "somewhere" / "dualfocus_lmms" / "results" / "data"
    shutil.copytree(folder, own)
    monkeypatch.setattr(records, "FOLDER", own)
    return tmp_path / "somewhere"


def measured_links(page: Path) -> list[Path]:
    """What the measured rows of a page lead to."""
    links = re.findall(r"\[measured, [\d-]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    return [page.parent / link for link in links]


def test_a_checkout_has_its_page_beside_its_numbers(package: Path):
    (package / "setup.cfg").touch()
    page = write()
    assert page == package / "dualfocus_lmms" / "results" / "README.md"
    assert page.read_text(encoding="utf-8") == readme()
    assert "`data/published/`" in readme()
    (linked,) = measured_links(page)
    assert linked.parent == records.FOLDER / "runs"
    assert linked.is_file()


def test_a_named_folder_has_its_page_in_it(package: Path, folder: Path):
    page = write(folder)  # in an installed copy too
    assert page == folder / "README.md"
    assert page.read_text(encoding="utf-8") == readme(folder)
    assert "75.00 ± 25.00" in readme(folder)
    (linked,) = measured_links(page)
    assert linked.parent == folder / "runs"
    assert linked.is_file()


def test_an_installed_copy_is_read_but_not_written_to(package: Path, tmp_path: Path, write_run: WriteRun):
    before = sorted(package.rglob("*"))
    run = str(write_run(tmp_path / "second", [0.0, 100.0], date="20261123_000000"))
    measured = record(load_run(run), "a machine")
    for refused in (write, lambda: add(measured)):
        with pytest.raises(UserError, match="--folder"):
            refused()
    with pytest.raises(UserError, match="--folder"):
        command(task=None, form="md", add=run, hardware="a machine", traces=None, pathways=False, folder=None)
    with pytest.raises(UserError, match="--folder"):
        command(add=None, write=True, folder=None)
    assert sorted(package.rglob("*")) == before
    assert len(leaderboard(records.FOLDER)) == 4
    assert add(measured, tmp_path / "mine").parent == tmp_path / "mine" / "runs"


def test_the_committed_page_is_not_stale():
    """`make leaderboard` writes it anew."""
    assert (FOLDER.parent / "README.md").read_text(encoding="utf-8") == readme()


def test_the_command_adds_and_prints(
    folder: Path, tmp_path: Path, write_run: WriteRun, run_command: Callable[..., Any]
):
    run = write_run(tmp_path / "second", [0.0, 0.0, 0.0, 100.0], date="20261123_000000")
    command = ["leaderboard", "--folder", str(folder)]
    process = [sys.executable, "-m", "dualfocus_lmms", *command, "--add", str(run)]
    assert subprocess.run(process, capture_output=True, check=False).returncode == 2  # on which machine?

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command("dualfocus", *command, *arguments)

    assert call("--add", str(run), "--hardware", "a machine").returncode == 0
    assert call("--add", str(run), "--hardware", "a machine").returncode == 2
    done = call("--task", "df_local", "--format", "csv")
    assert pd.read_csv(io.StringIO(done.stdout))["accuracy"].tolist() == [80.0, 75.0, 60.0, 25.0]


@pytest.mark.parametrize("form", FORMATS)
def test_all_that_is_committed_can_be_printed(form: str):
    assert render(leaderboard(), form).count("LLaVA-1.5-7B") > 20
