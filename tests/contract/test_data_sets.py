"""The library `datasets` and the file locks beneath it, as our tasks and the host use them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

LookUp = Callable[[str], Any]


def png(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def docs(foreign: LookUp) -> Any:
    """Three documents with an image and a list of images."""
    rows = [
        {"image_id": f"{number}.jpg", "index": number, "image": {"bytes": png(), "path": None}}
        for number in range(3)
    ]
    made = foreign("datasets:Dataset.from_list")(rows)
    return made.cast_column("image", foreign("datasets:Image")())


def test_columns_tell_whether_they_hold_texts(docs: Any) -> None:
    """The reader of requests groups questions by the name of their image, where that is a text."""
    kinds = {name: getattr(docs.features.get(name), "dtype", None) for name in docs.column_names}
    assert kinds["image_id"] == "string", "Dataset.features: dtype of a text"
    assert kinds["image"] != "string", "Dataset.features: dtype of an image"
    assert docs["image_id"][1] == "1.jpg", "Dataset[column][row]"


def test_images_are_told_by_the_name_of_their_class(foreign: LookUp, docs: Any) -> None:
    """Fingerprints leave media out of a question: they know them, and lists of them, by these names."""
    assert type(docs.features["image"]).__name__ == "Image", "datasets.Image"
    listed = docs.add_column("images", [[{"bytes": png(), "path": None}]] * 3)
    listed = listed.cast_column("images", foreign("datasets:List")(foreign("datasets:Image")()))
    assert type(listed.features["images"].feature).__name__ == "Image", "datasets.List.feature"
    assert {foreign(f"datasets:{name}").__name__ for name in ("Audio", "Video")} == {"Audio", "Video"}


def test_an_image_comes_decoded_or_as_its_bytes(foreign: LookUp, docs: Any) -> None:
    """MMBench's task keeps the bytes of the hub's images, and makes an image column of them again."""
    assert docs[0]["image"].size == (3, 2), "datasets.Image"
    raw = docs.cast_column("image", foreign("datasets:Image")(decode=False))[0]["image"]
    assert (raw["bytes"], raw["path"]) == (png(), None), "datasets.Image(decode=False)"


def test_columns_are_chosen_added_and_removed(docs: Any) -> None:
    """The tasks: of the hub's columns the ones that are needed, and beside them what was counted."""
    chosen = docs.select_columns(["index"]).add_column("questions_without_image", [0] * 3)
    assert chosen[2] == {"index": 2, "questions_without_image": 0}, "Dataset.select_columns, .add_column"
    assert docs.remove_columns(["image"]).column_names == ["image_id", "index"], "Dataset.remove_columns"
    assert [doc["index"] for doc in docs.select([2, 0])] == [2, 0], "Dataset.select"


def test_a_split_has_its_name(foreign: LookUp, tmp_path: Path) -> None:
    """POPE's task reads which file it needs off the split of the placeholder."""
    (tmp_path / "a.txt").write_text("line")
    given = {"data_files": {"random": str(tmp_path / "a.txt")}, "cache_dir": str(tmp_path / "cache")}
    loaded = foreign("datasets:load_dataset")("text", **given)
    assert [str(loaded[name].split) for name in loaded] == ["random"], "Dataset.split"


def test_a_parquet_file_tells_which_columns_are_images(foreign: LookUp, tmp_path: Path) -> None:
    """Training samples are written by pyarrow, with the note that makes `datasets` show their images."""
    image, text = foreign("datasets:Image")(), foreign("datasets:Value")("string")
    features = foreign("datasets:Features")(
        id=text, image=image, box=foreign("datasets:List")(foreign("datasets:Value")("float64"))
    )
    columns = pa.schema(
        {"id": pa.string(), "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
         "box": pa.list_(pa.float64())}
    )  # fmt: skip
    row = {"id": "a", "image": {"bytes": png(), "path": "a.png"}, "box": [0.0, 0.5]}
    table = pa.Table.from_pylist([row], columns.with_metadata(features.arrow_schema.metadata))
    pq.write_table(table, tmp_path / "samples.parquet")
    read = foreign("datasets:Dataset.from_parquet")(
        str(tmp_path / "samples.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert read[0]["image"].size == (3, 2), "Features.arrow_schema.metadata"
    assert read[0]["box"] == [0.0, 0.5], "Features.arrow_schema.metadata"


def test_a_hub_that_cannot_be_reached_is_a_connection_error(
    foreign: LookUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dualfocus eval` reads in this message which data set it was, and says what to do without network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(foreign("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(foreign("datasets.config"), "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError) as caught:
        foreign("datasets:load_dataset")("dualfocus-contract/none")
    named = re.search(r"Couldn't reach '([\w.-]+/[\w.-]+)' on the Hub", str(caught.value))
    assert named is not None, f"datasets says: {caught.value}"
    assert named[1] == "dualfocus-contract/none", f"datasets says: {caught.value}"


# --- file locks --------------------------------------------------------------------------------------------


def test_filelock_has_the_module_that_the_host_imports(foreign: LookUp) -> None:
    """`dualfocus eval`: lmms-eval 0.7.3 imports `filelock._api`, which filelock 4.3 no longer has; without it
    every evaluation crashes."""
    api = foreign("filelock._api")
    assert issubclass(foreign("filelock:FileLock"), api.BaseFileLock), "filelock._api.BaseFileLock"
    assert isinstance(foreign("filelock:FileLock"), api.FileLockMeta), "filelock._api.FileLockMeta"


def test_datasets_has_a_file_lock_of_its_own(foreign: LookUp) -> None:
    """`dualfocus eval`: the host changes it, so that two loads of one data set do not wait for each other."""
    assert foreign("datasets.utils._filelock:FileLock") is not foreign("filelock:FileLock")


def test_the_hosts_change_of_file_locks_works(
    foreign: LookUp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`dualfocus eval`: what the host does to the locks at the start of every evaluation."""
    meta = foreign("filelock._api:FileLockMeta")
    monkeypatch.setattr(meta, "__call__", meta.__call__)
    change = foreign("lmms_eval.evaluator:_enable_reentrant_filelocks")
    monkeypatch.setattr(change, "_patched", False, raising=False)
    change()
    one = foreign("filelock:FileLock")(str(tmp_path / "lock"))
    with one, foreign("datasets.utils._filelock:FileLock")(str(tmp_path / "lock")) as other:
        assert other is one, "lmms_eval.evaluator._enable_reentrant_filelocks"
