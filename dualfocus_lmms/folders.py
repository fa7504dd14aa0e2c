"""Folders that results go to, checked before the work."""

from __future__ import annotations

import tempfile
from pathlib import Path

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
