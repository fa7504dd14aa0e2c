"""A command that is killed in the middle of its work, for tests of what the same command does afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

import pytest


def kill(
    command: Sequence[str | Path], when: Callable[[], object], env: Mapping[str, str] | None = None
) -> None:
    """Run `python COMMAND` until `when()` is true, then kill it; fails where it ends before that.

    env: environment variables on top.
    """
    with TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=os.environ | dict(env or {}),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            deadline = time.monotonic() + 300
            while not when():
                if process.poll() is not None or time.monotonic() > deadline:
                    errors.seek(0)
                    pytest.fail(f"{command} was not killed: {errors.read().decode()[-3000:]}")
                time.sleep(0.002)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == -signal.SIGKILL


def whole_lines(path: Path) -> int:
    """How many whole lines a file has; 0 where it is missing."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
