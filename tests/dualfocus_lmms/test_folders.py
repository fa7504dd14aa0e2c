"""Folders are checked before the work that fills them."""

from __future__ import annotations

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.folders import writable


def test_a_missing_folder_is_made_and_stays_empty(tmp_path):
    folder = writable(tmp_path / "a" / "b", "--out")
    assert folder == tmp_path / "a" / "b"
    assert list(folder.iterdir()) == []
    (folder / "kept").touch()
    assert writable(str(folder), "--out") == folder
    assert (folder / "kept").exists()


def test_what_cannot_be_a_folder_is_refused_by_the_option_s_name(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="--somewhere"):
            writable(path, "--somewhere")
