"""Writing files: folders checked before the work, and files that are complete or do not exist."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

from dualfocus_lmms.errors import UserError


def writable(folder: str | Path, option: str) -> Path:
    """A folder, made if it is missing. UserError that names the option where no file can be written to it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"Cannot write to {option} {folder}: {error}. Give another folder.") from error
    return folder


def atomic_write(path: str | Path, data: str | bytes, sync: bool = False) -> None:
    """Write a file, text as UTF-8. A reader finds the old content or the new, never a part of it.

    sync: on the disk before this returns, for a file whose loss would cost work. Raises OSError. What is no
    regular file, such as /dev/stdout, is written to as it is.
    """
    path = Path(path)
    content = data.encode() if isinstance(data, str) else data
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    with replacing(path, sync) as temporary:
        temporary.write_bytes(content)


def save_text(path: str | Path, text: str, what: str) -> None:
    """Write a file that a user named and the folders above it, see `atomic_write`. UserError that says `what`
    could not be written where that fails."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text, sync=True)
    except OSError as error:
        raise UserError(f"Cannot write the {what} to {path}: {error}. Give another file.") from error


@contextmanager
def replacing(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """A temporary name in the folder of `path`; the file written to it becomes `path` when the block ends.

    When the block raises, the temporary file is removed and `path` stays as it was. Of a symbolic link, the
    file that it points to is replaced. sync: see `atomic_write`.
    """
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.stem[:40]}.{token_hex(8)}.tmp")
    try:
        yield temporary
        if sync:
            _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise
    if sync and os.name == "posix":
        with suppress(OSError):  # the file is complete; not every file system can sync a folder
            _sync(path.parent, os.O_RDONLY)


@contextmanager
def new_folder(path: str | Path, keep: bool = False) -> Iterator[Path]:
    """A folder beside `path` to fill, which becomes `path` when the block ends.

    When the block raises, it is removed, and so is what a kill left of an earlier one: nothing half done is
    in the way of the same call. keep: what an earlier call left is in it instead, but for files that
    `replacing` did not finish. Raises OSError, also where `path` holds something.
    """
    path = Path(path).resolve()
    partial = path.with_name(f"{path.name}.partial")
    if not keep:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, exist_ok=keep)
        for unfinished in partial.glob(".*.tmp"):
            unfinished.unlink()
        yield partial
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        partial.rename(path)
    finally:
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
