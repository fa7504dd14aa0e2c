"""Pictures whose file ends too early."""

from __future__ import annotations

from PIL import ImageFile


def refuse_truncated() -> None:
    """Have Pillow raise OSError for them from now on: lmms-eval's setting fills what is missing with grey."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
