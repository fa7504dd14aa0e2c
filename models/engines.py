"""Engines by name."""

from __future__ import annotations

from dualfocus_lmms.errors import choose
from dualfocus_lmms.models.backend import ModelBackend
from dualfocus_lmms.models.loading import Checkpoint
from dualfocus_lmms.models.naive import NaiveBackend
from dualfocus_lmms.models.shared import SharedBackend

ENGINES: dict[str, type[SharedBackend] | type[NaiveBackend]] = {
    "shared": SharedBackend,
    "naive": NaiveBackend,
}


def make_engine(name: str, checkpoint: Checkpoint) -> SharedBackend | NaiveBackend:
    """The engine called `name` on a loaded checkpoint; UserError lists the known ones."""
    if name not in ENGINES:
        raise choose("engine", name, sorted(ENGINES))
    return ENGINES[name](checkpoint)


__all__ = ["ENGINES", "ModelBackend", "make_engine"]
