"""Pictures as people see them: what models are trained on and asked about."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

_WHITE = 2**16 - 1  # of 16-bit grey, which older versions of Pillow read into 32 bits (mode I)


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say, in RGB.

    16-bit grey keeps its upper eight bits: Pillow's own conversion makes white of all that is above 255.
    ValueError for numbers that do not say how much white is. Also raises what Pillow does as it decodes.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _WHITE:
        raise ValueError(
            f"its numbers, {values.min():g} to {values.max():g}, do not say how much white is: "
            "save it with 8 or 16 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
