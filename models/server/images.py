"""Images as a server gets them, and how large its model sees them. Knows nothing about requests."""

from __future__ import annotations

import base64
import io
import weakref
from collections.abc import Callable
from threading import Lock
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.family import Family
from dualfocus_lmms.images import rgb
from dualfocus_lmms.models.checkpoint.folder import load_error
from dualfocus_lmms.models.checkpoint.image_inputs import grid_size, resolution_of
from dualfocus_lmms.models.checkpoint.shipped import resolve_path
from dualfocus_lmms.zoom import DynamicResolution, pad_to_square

CLIP_MEAN = (122, 116, 104)  # RGB: what LLaVA-1.5 fills a square with

InputSize = Callable[[Image.Image], tuple[int, int]]


class _Url:
    """A data URL that is being made or was: `text` under `lock`."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.text: str | None = None


class DataUrls:
    """Images as data URLs, each made once however many threads ask for it, and kept as long as the image.

    square: an image is padded to a square first. Servers leave images to the checkpoint's own processor,
    and LLaVA-1.5's cuts the middle out of them. resized: an image is resized by this first, so that a server
    whose own bounds are wider leaves it unchanged.
    """

    def __init__(self, square: bool, resized: DynamicResolution | None = None) -> None:
        self._square = square
        self._resized = resized
        self._lock = Lock()
        self._urls: dict[int, _Url] = {}  # by id, which no other image has meanwhile

    def __call__(self, image: Image.Image) -> str:
        with self._lock:
            if id(image) not in self._urls:
                self._urls[id(image)] = _Url()
                weakref.finalize(image, self._urls.pop, id(image))
            url = self._urls[id(image)]
        with url.lock:
            if url.text is None:
                url.text = self._made(image)
            return url.text

    def __len__(self) -> int:
        return len(self._urls)

    def _made(self, original: Image.Image) -> str:
        """A PNG, which changes no pixel."""
        image = rgb(original)
        if self._square:
            image = pad_to_square(image, CLIP_MEAN)
        if self._resized is not None:
            image = image.resize(self._resized.fit(image.size), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def load_input_size(processor: str) -> InputSize:
    """What gives the (width, height) in pixels to which a checkpoint's image processor resizes an image.

    processor: a folder or hub name; nothing else is loaded of it. UserError where there is no image processor
    or where it does not resize an image to a grid of patches.
    """
    image_processor = _load(processor)

    def input_size(image: Image.Image) -> tuple[int, int]:
        try:
            made = image_processor(images=[rgb(image)], return_tensors="pt")
        except ValueError as error:  # Qwen's refuses images more than 200 times as long as wide
            raise UserError(
                f"The image processor {processor!r} refuses an image of {image.width} x {image.height} "
                f"pixels: {error}"
            ) from error
        size = grid_size(made, image_processor)
        if size is None:
            raise UserError(
                f"The image processor {processor!r} does not report the size of a resized image. Give "
                "processor=<the checkpoint that the server runs>, or load it with --model dualfocus."
            )
        return size

    input_size(Image.new("RGB", (64, 64)))  # before any question is asked
    return input_size


def load_resolution(processor: str, family: Family) -> DynamicResolution | None:
    """How a checkpoint's image processor resizes images; None for a family whose encoder has one size."""
    return resolution_of(family, _load(processor))


def _load(processor: str) -> Any:
    """The image processor of a folder or hub name; nothing else is loaded of it."""
    try:
        return AutoImageProcessor.from_pretrained(
            resolve_path(processor), backend="pil", trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"Cannot load an image processor from {processor!r}: {load_error(error)}\n"
            "Give processor=<folder or hub name of the checkpoint that the server runs>, with its "
            "preprocessor_config.json."
        ) from error
