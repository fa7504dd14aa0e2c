"""Large JSON arrays: read in pieces, records found by id, errors where a file is cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.train.vg.json_array import JsonArray, records


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_an_array_is_read_piece_by_piece(tmp_path: Path, piece: int) -> None:
    rows = [{"id": 3, "text": 'Größe "]},{'}, {"id": 1, "list": [[1.5e3, -2], {}, None]}, 12, {"image_id": 2}]
    path = tmp_path / "a.json"
    path.write_text("\ufeff [ " + " ,\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n")
    data = path.read_bytes()
    assert [json.loads(data[start:end]) for start, end, _ in records(path, piece)] == rows


def test_records_are_found_by_id_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"id": 30, "v": "ü"}, {"image_id": 4, "id": 9}, [], {"id": 30, "v": 2}, {"id": "7"}]
    path.write_text(json.dumps(rows, ensure_ascii=False))
    array = JsonArray(path)
    assert list(array.ids) == [4, 30]
    assert array.get(30) == {"id": 30, "v": "ü"}
    assert (array.get(9), array.get(31), len(array), array.malformed) == (None, None, 2, [2, 4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"id": 1}, {"id"', "from byte 12 on"),
        ('[{"id": 1}', "ends before its array does"),
        ("", "ends before"),
        ('{"id": 1}', "no array of records"),
        ('[{"id": 1}, {id: 2}, {"id": 3}, {"id": 4}, {"id": 5}]', "from byte 12 on: Expecting property"),
    ],
)
def test_an_incomplete_array_raises(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        JsonArray(path)
