"""Every reader on damaged files: none ends in a traceback, hangs, loses what is whole or names no file."""

from __future__ import annotations

import pytest
from fuzz.readers import Reader, fuzz, quiet, shares
from fuzz.whole_files import readers

pytest.importorskip("lmms_eval")
pytestmark = pytest.mark.seconds(60)

COUNT, SEED = 1200, 0  # by hand up to 20,000: docs/robustness.md
READERS = {reader.name: reader for reader in readers(Reader)}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_on_or_refused_by_name(name: str, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    monkeypatch.setenv("DUALFOCUS_LOCAL", "")  # the report's reader sets it
    count = shares(list(READERS.values()), COUNT)[name]
    with quiet():
        result = fuzz(READERS[name], count, SEED)
    assert result.faults == {}
    assert result.counts["read"] + result.counts["refused"] == count
