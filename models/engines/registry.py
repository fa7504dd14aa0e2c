"""Engines by name."""

from __future__ import annotations

from dualfocus_lmms.errors import choose
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.engines.batched import BatchedBackend
from dualfocus_lmms.models.engines.naive import NaiveBackend
from dualfocus_lmms.models.engines.shared import SharedBackend
from dualfocus_lmms.models.engines.template import TemplateBackend
from dualfocus_lmms.models.engines.tree import TreeBackend

ENGINES: dict[str, type[SharedBackend] | type[NaiveBackend]] = {
    "tree": TreeBackend,
    "template": TemplateBackend,
    "shared": SharedBackend,
    "batched": BatchedBackend,
    "naive": NaiveBackend,
}


def make_engine(
    name: str | None, checkpoint: Checkpoint, cuda_graphs: bool = False
) -> SharedBackend | NaiveBackend:
    """The engine called `name` on a loaded checkpoint; None is the one of its family. UserError lists the
    known names, and says where cuda_graphs cannot be; the engines that run
    transformers' `generate` ignore them."""
    name = checkpoint.family.engine if name is None else name
    if name not in ENGINES:
        raise choose("engine", name, sorted(ENGINES))
    engine = ENGINES[name]
    return engine(checkpoint, cuda_graphs) if issubclass(engine, SharedBackend) else engine(checkpoint)


__all__ = ["ENGINES", "ModelBackend", "make_engine"]
