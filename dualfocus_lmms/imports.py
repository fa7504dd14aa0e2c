"""Importing large libraries: torch, transformers, lmms-eval."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_own_process = False


def own_process() -> None:
    """To be called by a command that has the process to itself: collections skip what it imports."""
    global _own_process
    _own_process = True


@contextmanager
def large_imports() -> Iterator[None]:
    """No garbage collection while large libraries are imported: they make half a million objects, and it
    finds no garbage among them.

    In a process of our own (`own_process`), later collections skip these objects too, until its end. In
    another one they do not, as objects of the user's would be skipped as well.
    """
    enabled, first = gc.isenabled(), "torch" not in sys.modules
    gc.disable()
    try:
        yield
        if _own_process and first:
            gc.freeze()
            atexit.register(gc.unfreeze)  # libraries in C++ report what is left at the end as leaks
    finally:
        if enabled:
            gc.enable()


@contextmanager
def without_pipelines() -> Iterator[None]:
    """Inside, `evaluate`, which lmms-eval imports for its metrics, takes transformers' pipelines as not
    installed, as it may be: they bring torchvision and torch's compiler, 4 s and 220 MB for nothing."""
    name = "transformers.pipelines"
    if name in sys.modules or "evaluate" in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
