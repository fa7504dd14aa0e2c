"""Opening images: upright, in RGB on a white ground, complete; and the fingerprint of their pixels."""

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
    """The image rotated as its EXIF data require, in RGB, on white where it is transparent.

    Raises what `rgb` does.
    """
    return rgb(ImageOps.exif_transpose(image))


def rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, on white where it is transparent, as viewers show it; the image itself if it is so.

    Pillow's own conversion drops transparency and shows the colours under it, which are black as a rule.
    16-bit grey keeps its upper eight bits: Pillow makes white of all that is above 255. ValueError for
    numbers without a known white. Also raises what Pillow does as it decodes.
    """
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_numbers(image)
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """The image over a white ground; opaque pixels keep their exact colours."""
    layer = image.convert("RGBA")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(layer, mask=layer)
    return ground


def _from_numbers(image: Image.Image) -> Image.Image:
    """16-bit grey in RGB; the one value that a PNG may declare transparent is white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > _WHITE:
        raise ValueError(
            f"its numbers, {values.min():g} to {values.max():g}, do not tell how much white is: "
            "save it with 8 or 16 bits"
        )
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        values = np.where(values == clear, _WHITE, values)
    return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")


def image_hash(image: Image.Image) -> str:
    """A fingerprint of the decoded RGB pixels, the same for every file format that decodes to them."""
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=8)
    digest.update(rgb(image).tobytes())
    return digest.hexdigest()
