"""Opening images: upright, in RGB on a white ground, complete; and the fingerprint of their pixels."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import BinaryIO

from PIL import EpsImagePlugin, Image, ImageFile, ImageOps, UnidentifiedImageError

from dualfocus_lmms.errors import UserError

Source = str | PathLike[str] | BinaryIO | Image.Image

# What Pillow raises for a file that is no image or a broken one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

# The formats that are opened, as far as Pillow was built with them. No file reaches the code for others.
# MPO is what Pillow calls a JPEG of some cameras.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
_OTHERS = {  # how files begin that are taken for images
    b"%!PS": "EPS or PostScript",
    b"\xc5\xd0\xd3\xc6": "EPS",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\x00\x00\x01\x00": "ICO",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"<": "HTML, SVG or XML",
    b"{": "JSON",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "a pointer of git-lfs",
}

MAX_PIXELS = "DUALFOCUS_MAX_PIXELS"  # the environment variable that replaces the limit
DEFAULT_MAX_PIXELS = 2**30  # 32,768 x 32,768; in memory Pillow takes 4 bytes for each

_ALLOWED = f"and {', '.join(FORMATS)} are read"
_WHITE = 2**16 - 1  # of 16-bit grey, which older versions of Pillow read into 32 bits (mode I)


def open_image(source: Source) -> Image.Image:
    """The image of a path, an open file or a Pillow image, upright and in RGB.

    Raises one of UNREADABLE, for a file that ends too early too; `unreadable` makes a UserError of it.
    """
    with opened(source) as image:
        return upright(image)


@contextmanager
def opened(source: Source) -> Iterator[Image.Image]:
    """The image before it is decoded: its size and format. One of UNREADABLE for what is no image of FORMATS,
    and for one of more pixels than `max_pixels`."""
    set_up_pillow()
    with nullcontext(source) if isinstance(source, Image.Image) else _open(source) as image:
        kind = getattr(image, "format", None)  # None: made here
        if kind is not None and kind not in FORMATS:
            raise UnidentifiedImageError(f"its format is {kind}, {_ALLOWED}")
        most = max_pixels()
        if image.width * image.height > most:
            raise Image.DecompressionBombError(
                f"{image.width:,} x {image.height:,} pixels are above {most:,}"
            )
        yield image


def set_up_pillow() -> None:
    """Give Pillow our limits, for images that other code opens as well.

    Files that end too early raise OSError; lmms-eval has Pillow fill the rest with grey. Images of up to
    `max_pixels` are opened, and crops of them made; Pillow's own limit is 179 million. And no PostScript in a
    file that is called an image runs: Ghostscript is never started.
    """
    EpsImagePlugin.gs_binary = False
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = max_pixels()


def _open(source: str | PathLike[str] | BinaryIO) -> Image.Image:
    """A file of one of FORMATS. UnidentifiedImageError that names its actual format."""
    Image.init()
    try:
        return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        head = _head(source)
        known = (name for start, name in _OTHERS.items() if head.startswith(start))
        what = "the file is empty" if not head else f"it is {next(known, f'no image: {head[:8]!r}...')}"
        raise UnidentifiedImageError(f"{what}, {_ALLOWED}") from error


def _head(source: str | PathLike[str] | BinaryIO) -> bytes:
    """How a file begins, without the white space before it."""
    if isinstance(source, (str, PathLike)):
        with open(source, "rb") as file:
            return file.read(64).lstrip()
    source.seek(0)
    return source.read(64).lstrip()


def max_pixels() -> int:
    """The most pixels an image may have: DUALFOCUS_MAX_PIXELS, else DEFAULT_MAX_PIXELS."""
    given = os.environ.get(MAX_PIXELS) or str(DEFAULT_MAX_PIXELS)
    if not given.isdecimal() or int(given) == 0:
        raise UserError(
            f"{MAX_PIXELS} is the most pixels an image may have, a whole number, 1 or more, got {given!r}. "
            f"Leave it out for {DEFAULT_MAX_PIXELS:,}."
        )
    return int(given)


def is_address(source: object) -> bool:
    """Whether something is given as a web address, which is never fetched."""
    return (
        isinstance(source, str) and re.match(r"(https?|ftp|s3|gs|data):", source, re.IGNORECASE) is not None
    )


def unreadable(what: str, error: Exception, advice: str) -> UserError:
    """The message for an image that cannot be read. what: names it, "The image 'a.png'". advice: what to do
    where the file is broken; one that is too large gets another."""
    if isinstance(error, Image.DecompressionBombError):
        advice = f"make it smaller, or allow more pixels with {MAX_PIXELS}=<number>, as far as memory goes."
        return UserError(f"{what} is too large ({error}): {advice}")
    return UserError(f"{what} cannot be read ({error}): {advice}")


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
    import numpy as np  # slow to load, and few images need it

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
