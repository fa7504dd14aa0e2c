"""Excel files: what they hold, and that no damage and no far cell takes longer than it is worth."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.tasks.common import sheets

openpyxl = pytest.importorskip("openpyxl")


def write(path: Path, *rows: list[Any], **cells: Any) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for place, value in cells.items():
        book.active[place] = value
    book.save(path)
    return path


def test_rows_are_read_by_the_names_of_their_columns(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.xlsx", ["index", None, "text"], [1, "-", "a"], [2.0, None, None], [], [3.5, None, True]
    )
    assert sheets.columns(file) == ["index", "text"]
    blank = {"index": "", "text": ""}
    rows = [{"index": 1, "text": "a"}, {"index": 2, "text": ""}, blank, {"index": 3.5, "text": True}]
    assert sheets.read_sheet(file) == rows
    assert sheets.read_sheet(write(tmp_path / "b.xlsx")) == []


@pytest.mark.parametrize("cell", ["XFD2", "A1048576", "XFD1048576"])
def test_a_far_cell_costs_a_moment(tmp_path: Path, cell: str) -> None:
    file = write(tmp_path / "far.xlsx", ["index", "text"], [1, "a"], **{cell: "x"})
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"far\.xlsx.*(row 2|rows)"):
        sheets.read_sheet(file)
    assert time.monotonic() - begin < 20


def test_two_columns_of_one_name_and_too_many_bytes_are_refused(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match="two columns text"):
        sheets.read_sheet(write(tmp_path / "twice.xlsx", ["text", "text"], ["a", "b"]))
    file = write(tmp_path / "large.xlsx", ["text"])
    monkeypatch.setattr(sheets, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"large\.xlsx"):
        sheets.read_sheet(file)


def test_a_damaged_part_is_refused_by_the_file_s_name(tmp_path: Path) -> None:
    file = write(tmp_path / "a.xlsx", ["index"], [1])
    with zipfile.ZipFile(file) as whole, zipfile.ZipFile(tmp_path / "bad.xlsx", "w") as bad:
        for name in whole.namelist():
            content = whole.read(name)
            bad.writestr(name, content[:-9] if "sheet1" in name else content)
    with pytest.raises(UserError, match=r"bad\.xlsx"):
        sheets.read_sheet(tmp_path / "bad.xlsx")
