"""A disk that is full, and one that is only read: what was whole stays whole, and the same call goes on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dualfocus_lmms import Answer, Selection, Trace, UserError, integrity
from dualfocus_lmms.files import atomic_write, new_folder, save_text, writable
from dualfocus_lmms.scenes import make_scenes
from dualfocus_lmms.trace import TraceWriter, claim_folder, read_traces
from dualfocus_lmms.train.data.scene_files import write_visual_genome

resource = pytest.importorskip("resource")  # not on Windows


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A write beyond `size` bytes of a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mounted(*arguments: str) -> None:
    """Mount a file system, or skip where one may not."""
    try:
        made = subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        made = False
    if not made:
        pytest.skip("no file system can be mounted here")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB. Skipped for who may not make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk))
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, root neither: for root a file system that is read only."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
    else:
        mounted("-t", "tmpfs", "-o", "ro", "tmpfs", str(folder))
        yield folder
        subprocess.run(["umount", str(folder)], check=True)


def trace(doc_id: int, text: str = "red") -> Trace:
    return Trace(
        key={"task": "t", "split": "test", "doc_id": doc_id},
        question_id=str(doc_id),
        prompts={"macro": "What?"},
        image_size=(6, 4),
        image_hash="00",
        selection=Selection("macro", text, "macro"),
        macro=Answer("macro", text, (1,), (-0.1,), ended=False),
    )


def write_twice(folder: Path) -> None:
    """A small file that goes, then a large one in its place that does not."""
    atomic_write(folder / "file.json", "old")
    with pytest.raises(OSError, match=r"File too large|No space left"):
        atomic_write(folder / "file.json", "new" * 50_000, sync=True)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("file.json", "old")]


def test_a_file_stays_as_it_was(tmp_path: Path) -> None:
    with files_of_at_most(1000):
        write_twice(tmp_path)


def test_a_file_on_a_small_file_system_stays_as_it_was(small_disk: Path) -> None:
    write_twice(small_disk)


def test_a_run_loses_one_line_and_goes_on(small_disk: Path) -> None:
    claim_folder(small_disk / "traces", {"protocol": "paper"}, resume=False)
    writer = TraceWriter(small_disk / "traces")
    many = [trace(doc_id, "long " * 400) for doc_id in range(1000)]
    with pytest.raises(UserError, match="resume=True"):
        writer.write(many)
    kept, damaged = read_traces(small_disk / "traces")
    assert [found.key["doc_id"] for found in kept] == list(range(len(kept)))
    assert len(kept) > 5
    assert len(damaged) <= 1
    with pytest.raises(UserError, match="make room"):
        integrity.write_data(small_disk / "traces", {"t/test": [{"question": "What?"}]})
    assert not (small_disk / "traces" / "data.json").exists()
    atomic_write(small_disk.parent / "elsewhere", "")  # another disk has room
    claim_folder(small_disk / "traces", {"protocol": "paper"}, resume=True)


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    def fill(content: bytes) -> None:
        with new_folder(tmp_path / "out") as partial:
            (partial / "first").write_bytes(b"1")
            (partial / "second").write_bytes(content)

    (tmp_path / "out.partial").mkdir()  # of a call that was killed
    (tmp_path / "out.partial" / "stale").touch()
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large"):
        fill(bytes(2000))
    assert list(tmp_path.iterdir()) == []
    fill(b"2")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first", "second"]
    with pytest.raises(OSError, match="out"):
        fill(b"3")  # what is there is kept
    assert (tmp_path / "out" / "second").read_bytes() == b"2"


def test_a_folder_that_is_only_read_is_refused(read_only: Path) -> None:
    scenes = list(make_scenes("train", 0, 1))
    for call in (
        lambda: writable(read_only / "out", "--out"),
        lambda: claim_folder(read_only / "traces", {}, resume=False),
        lambda: TraceWriter(read_only),
        lambda: save_text(read_only / "out.md", "text", "summary"),
        lambda: write_visual_genome(read_only / "scenes", scenes),
    ):
        with pytest.raises(UserError, match=r"another (folder|file)|new folder|writable"):
            call()
    assert list(read_only.iterdir()) == []


def test_scenes_on_a_small_file_system_go_on_where_there_is_room(small_disk: Path) -> None:
    scenes = list(make_scenes("train", 0, 4))
    mounted("-o", "remount,size=200k", str(small_disk))
    with pytest.raises(UserError, match="No space left"):
        write_visual_genome(small_disk / "scenes", scenes)
    drawn = len(list((small_disk / "scenes" / "VG_100K.partial").iterdir()))
    assert 0 < drawn < 4
    mounted("-o", "remount,size=1m", str(small_disk))
    write_visual_genome(small_disk / "scenes", scenes)
    assert len(list((small_disk / "scenes" / "VG_100K").iterdir())) == 4


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", '{"t/test": 3}', '{"t/test": {"samples": "3"}}', "[" * 9000]
)
def test_a_damaged_data_json_is_written_again(tmp_path: Path, caplog, damaged: str) -> None:
    TraceWriter(tmp_path).write([trace(0)])
    (tmp_path / "data.json").write_text(damaged)
    integrity.write_data(tmp_path, {"t/test": [{"question": "What?"}]})
    assert integrity.read_data(tmp_path)["t/test"]["questions"] == 1
    assert (tmp_path / "data.json.damaged").read_text() == damaged
    assert "data.json" in caplog.text
    assert json.loads((tmp_path / "data.json").read_text()).keys() == {"t/test"}
