"""Excel files: the first sheet as rows, whatever is wrong with the file, within stated limits.

Sheets are read row by row, so that one cell in the last column or row costs no more than itself.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dualfocus_lmms.errors import UserError

MOST_COLUMNS = 256
MOST_ROWS = 200_000
MOST_BYTES = 1 << 30  # of all parts of a file, unpacked

Cells = dict[str, Any]


def read_sheet(file: Path) -> list[Cells]:
    """The rows of the first sheet by the names in its first row, an empty cell as "".

    UserError for a file that is damaged, or larger than the limits of this module.
    """
    return list(_rows(file))


def columns(file: Path) -> list[str]:
    """The names in the first row of the first sheet, of the columns that have one."""
    with_names = next(_cells(file), [])
    return [str(name) for name in with_names if name is not None]


def _rows(file: Path) -> Iterator[Cells]:
    cells = _cells(file)
    names = [None if name is None else str(name) for name in next(cells, [])]
    known = [name for name in names if name is not None]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise UserError(f"{file} has two columns {', '.join(twice)}: keep one of each.")
    blank = 0
    for row in cells:
        row += [None] * (len(names) - len(row))
        found = {
            name: "" if value is None else value
            for name, value in zip(names, row, strict=False)
            if name is not None
        }
        if all(value is None for value in row):
            blank += 1  # dropped at the end of a sheet
            continue
        yield from (dict.fromkeys(known, "") for _ in range(blank))
        blank = 0
        yield found


def _cells(file: Path) -> Iterator[list[Any]]:
    """The values of each row, as long as its last cell; whole numbers as int."""
    import openpyxl

    try:
        with zipfile.ZipFile(file) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > MOST_BYTES:
            raise UserError(f"{file} holds {size:,} bytes, at most {MOST_BYTES:,} are read: divide it.")
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        try:
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # what the file says of its size may be wrong
            for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                if number > MOST_ROWS:
                    raise UserError(f"{file} has more than {MOST_ROWS:,} rows: divide it.")
                values = list(row)
                while values and values[-1] is None:
                    values.pop()
                if len(values) > MOST_COLUMNS:
                    raise UserError(
                        f"{file}, row {number}: a cell in column {len(values)}, at most {MOST_COLUMNS} "
                        "are read: clear the cells beyond."
                    )
                yield [_plain(value) for value in values]
        finally:
            book.close()
    except UserError:
        raise
    except Exception as error:  # what zlib, lxml and openpyxl raise of a damaged file is not documented
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}): give an Excel file (.xlsx)."
        ) from error


def _plain(value: Any) -> Any:
    """A whole number as int, as Excel shows it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
