"""Checkpoints that come with the package."""

from __future__ import annotations

from pathlib import Path

# By the name that `pretrained` gives them.
SHIPPED = {"dualfocus-nano": Path(__file__).parents[1] / "weights" / "dualfocus-nano"}


def resolve_path(pretrained: str) -> str:
    """The folder of a checkpoint that comes with the package; any other name or folder unchanged."""
    shipped = SHIPPED.get(pretrained)
    return pretrained if shipped is None or Path(pretrained).exists() else str(shipped)
