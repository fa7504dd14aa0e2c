"""One large JSON file that is an array of records, read without loading it. Knows nothing about the records.

Visual Genome's files are such arrays, up to 1 GB, one record an image. Memory is one piece of the file and
one record; the position of each record takes 24 bytes.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dualfocus_lmms.errors import UserError

_PIECE = 1 << 20  # bytes read at a time
_LARGEST = 1 << 27  # bytes, more than any record has
_BLANK = " \t\r\n"
_DECODER = json.JSONDecoder(strict=False)


def records(
    path: Path, piece: int = _PIECE, progress: Callable[[int], object] | None = None
) -> Iterator[tuple[int, int, Any]]:
    """(first byte, byte after the last, record) of each record in an array, in order.

    The file is decoded as Latin-1, one character a byte: text beyond ASCII in a record is not readable, while
    its structure and its numbers are. `progress` is called with the number of bytes read. UserError
    when the file is no JSON array or ends before the array does.
    """
    with open(path, "rb") as file:
        base = 3 if file.read(3) == b"\xef\xbb\xbf" else 0  # a byte order mark
        file.seek(base)
        text, at = "", 0  # text starts at byte `base`

        def read_more() -> bool:
            nonlocal text, base, at
            read = file.read(piece)
            if progress:
                progress(len(read))
            text, base, at = text[at:] + read.decode("latin-1"), base + at, 0
            return bool(read)

        opened = False
        while True:
            while at < len(text) and (text[at] in _BLANK or (opened and text[at] == ",")):
                at += 1
            if at >= len(text):
                if not read_more():
                    raise _broken(path, base + at, "it ends before its array does")
            elif not opened:
                if text[at] != "[":
                    raise _broken(path, base + at, "it is no array of records")
                opened, at = True, at + 1
            elif text[at] == "]":
                return
            else:
                try:
                    record, end = _DECODER.raw_decode(text, at)
                except RecursionError as error:
                    raise _broken(path, base + at, "it is nested too deep") from error
                except json.JSONDecodeError as error:
                    incomplete = error.pos >= len(text) - 16 or "string" in error.msg
                    if not (incomplete and len(text) - at < _LARGEST and read_more()):
                        raise _broken(path, base + at, error.msg) from error
                    continue
                except ValueError as error:  # a number of thousands of digits
                    raise _broken(path, base + at, str(error)) from error
                if end == len(text) and read_more():  # a number may go on
                    continue
                yield base + at, base + end, record
                at = end


def _broken(path: Path, byte: int, why: str) -> UserError:
    return UserError(f"{str(path)!r} cannot be read from byte {byte:,} on: {why}. Download it again.")


class JsonArray:
    """Random access by image id to an array of records.

    ids: in ascending order. malformed: positions in the file (from 0) of records without an id. Of records
    with the same id the first is used. May be copied to other processes.
    """

    def __init__(self, path: Path, progress: Callable[[int], object] | None = None) -> None:
        self.path = path
        self.malformed: list[int] = []
        rows = array("q")
        for index, (start, end, record) in enumerate(records(path, progress=progress)):
            if (found := record_id(record)) is None:
                self.malformed.append(index)
            else:
                rows.extend((found, start, end))
        table = np.frombuffer(rows, dtype=np.int64).reshape(-1, 3)
        _, first = np.unique(table[:, 0], return_index=True)
        self._table = array("q", table[first].tobytes())  # id, first byte, end; three numbers a record
        self.ids = array("q", table[first, 0].tobytes())

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, image_id: int) -> dict[str, Any] | None:
        """The record of an image, or None when there is none."""
        row = bisect_left(self.ids, image_id)
        if row == len(self.ids) or self.ids[row] != image_id:
            return None
        start, end = self._table[3 * row + 1 : 3 * row + 3]
        with open(self.path, "rb") as file:
            file.seek(start)
            text = file.read(end - start)
        found = json.loads(text, strict=False)
        if b"\\ud" in text.lower():  # half a character becomes "?": no file can hold it
            found = json.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
        return found


def record_id(record: Any) -> int | None:
    """The image id of a record: its `image_id`, or `id` in the versions that call it so; None without one."""
    if not isinstance(record, dict):
        return None
    found = record.get("image_id", record.get("id"))
    is_id = isinstance(found, int) and not isinstance(found, bool) and abs(found) < 1 << 62
    return found if is_id else None
