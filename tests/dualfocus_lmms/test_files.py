"""Folders are checked before the work that fills them, and a file is complete or stays as it was."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from dualfocus_lmms import UserError
from dualfocus_lmms.files import atomic_write, replacing, save_text, writable


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


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize(
    ("data", "written"), [("h\u00e9\n", b"h\xc3\xa9\n"), (b"\x00\r\n", b"\x00\r\n"), ("", b"")]
)
def test_text_and_bytes_arrive_as_they_are(tmp_path: Path, data: str | bytes, written: bytes, sync: bool):
    for path in (tmp_path / "new.json", tmp_path / "new.json", str(tmp_path / ("\u00e9" * 120))):
        atomic_write(path, data, sync)
        assert Path(path).read_bytes() == written
    assert len(list(tmp_path.iterdir())) == 2


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("module", "function"), [(Path, "write_bytes"), (os, "fsync"), (os, "replace")])
def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, function: str
):
    (tmp_path / "old").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(module, function, full_disk)
        with pytest.raises(OSError, match="No space left"):
            atomic_write(tmp_path / "old", "new", sync=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "old")]


def test_a_block_that_raises_leaves_nothing_behind(tmp_path: Path):
    def stopped() -> None:
        with replacing(tmp_path / "new") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_or_has_the_name_is_an_os_error(tmp_path: Path):
    for path in (tmp_path, tmp_path / "missing" / "file"):
        with pytest.raises(OSError, match=path.name):
            atomic_write(path, "text")


def test_writers_of_the_same_name_do_not_disturb_each_other(tmp_path: Path):
    texts = [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=atomic_write, args=(tmp_path / "one", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one").read_text() in texts


def test_links_and_devices_stay_what_they_are(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    atomic_write(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"
    atomic_write(os.devnull, "text")
    assert Path(os.devnull).is_char_device()


def test_a_file_that_a_user_names_is_written_with_its_folders_or_named(tmp_path: Path):
    save_text(tmp_path / "new" / "one.txt", "größer\n", "summary")
    assert (tmp_path / "new" / "one.txt").read_text(encoding="utf-8") == "größer\n"
    with pytest.raises(UserError, match=r"summary.*one\.txt"):
        save_text(tmp_path / "new" / "one.txt" / "two.txt", "", "summary")
