"""Opening images: upright, in RGB, complete; and the fingerprint of their pixels."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from os import PathLike
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps

Source = str | PathLike[str] | BinaryIO | Image.Image

# What Pillow raises for a file that is no image or a broken one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_WHITE = 2**16 - 1  # of 16-bit grey, which older versions of Pillow read into 32 bits (mode I)


def open_image(source: Source) -> Image.Image:
    """The image of a path, an open file or a Pillow image, upright and in RGB.

    Raises one of UNREADABLE, for a file that ends too early too.
    """
    refuse_truncated()
    with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source) as opened:
        return upright(opened)


def refuse_truncated() -> None:
    """Make Pillow raise OSError for files that end too early; lmms-eval has it fill the rest with grey."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def upright(image: Image.Image) -> Image.Image:
    """The image rotated as its EXIF data require, in RGB.

    16-bit grey keeps its upper eight bits: Pillow's own conversion makes white of all that is above 255.
    ValueError for numbers without a known white. Also raises what Pillow does as it decodes.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _WHITE:
        raise ValueError(
            f"its numbers, {values.min():g} to {values.max():g}, do not tell how much white is: "
            "save it with 8 or 16 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def image_hash(image: Image.Image) -> str:
    """A fingerprint of the decoded RGB pixels, the same for every file format that decodes to them."""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=8)
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()
