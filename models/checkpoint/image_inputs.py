"""From an image to a model's inputs: its ids in the prompt and the input of the encoder. No weights.

A family that pads images to a square, or a checkpoint without a processor of its own, gives every image the
same number of tokens. Any other uses the checkpoint's processor, which may make tiles, a grid of patches, and
tokens around them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from PIL import Image

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.family import Family
from dualfocus_lmms.images import rgb
from dualfocus_lmms.zoom import (
    DynamicResolution,
    given_bounds,
    needs_dynamic_resolution,
    pad_to_square,
)

_MOST_THREADS = 8  # pillow and numpy let others run while they resize and scale
_NOT_FOR_THE_ENCODER = (
    "input_ids",
    "attention_mask",
    "mm_token_type_ids",
    "token_type_ids",
    "batch_num_images",
)


@dataclass(frozen=True, eq=False, slots=True)
class ImageInputs:
    """One image as a model's inputs.

    ids: its tokens in the prompt. inputs: tensors by the model's own argument names, whose first
    dimension counts this image's parts (tiles, patches, or just 1), float32 on the CPU. input_size:
    (width, height) in pixels of the resized image.
    """

    ids: tuple[int, ...]
    inputs: Mapping[str, torch.Tensor]
    input_size: tuple[int, int]


class ImageRefusedError(UserError):
    """The checkpoint's own processor refuses an image."""


ImageReader = Callable[[Sequence[Image.Image]], "list[ImageInputs]"]


class FixedSizeImages:
    """Images of one size: `length` tokens each, padded to a square first where the family requires it."""

    resolution: DynamicResolution | None = None

    def __init__(self, family: Family, image_processor: Any, token: int, length: int) -> None:
        self._square = family.image == "square"
        self._processor = image_processor
        self._ids = (token,) * length
        mean = getattr(image_processor, "image_mean", None) or (0.0, 0.0, 0.0)
        self._pad_color = tuple(int(value * 255) for value in mean)

    def __call__(self, images: Sequence[Image.Image]) -> list[ImageInputs]:
        if len(images) < 2:
            return [self._inputs(image) for image in images]
        return list(_threads(os.getpid()).map(self._inputs, images))

    def _inputs(self, image: Image.Image) -> ImageInputs:
        rgb_image = rgb(image)
        if self._square:
            rgb_image = pad_to_square(rgb_image, self._pad_color)  # type: ignore[arg-type]
        pixels = self._processor(images=[rgb_image], return_tensors="pt")["pixel_values"]  # (1, 3, H, W)
        return ImageInputs(self._ids, {"pixel_values": pixels}, (pixels.shape[-1], pixels.shape[-2]))

    def ids(self, image: Image.Image) -> tuple[int, ...]:
        """The ids of `image` in a prompt."""
        return self._ids

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) in pixels of `image` as the encoder gets it."""
        return self([image])[0].input_size


class ProcessorImages:
    """Images as the checkpoint's own processor prepares them, one at a time.

    placeholder: the text that the chat template writes for an image. resolution: see `resolution_of`.
    """

    def __init__(self, processor: Any, placeholder: str, resolution: DynamicResolution | None = None) -> None:
        self._processor = processor
        self._placeholder = placeholder
        self.resolution = resolution

    def __call__(self, images: Sequence[Image.Image]) -> list[ImageInputs]:
        return [self._inputs(rgb(image)) for image in images]

    def ids(self, image: Image.Image) -> tuple[int, ...]:
        """The ids of `image` in a prompt."""
        return self([image])[0].ids

    def input_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) in pixels of `image` as the encoder gets it."""
        return self([image])[0].input_size

    def _inputs(self, image: Image.Image) -> ImageInputs:
        try:
            made = self._processor(
                images=[image], text=[self._placeholder], add_special_tokens=False, return_tensors="pt"
            )
        except ValueError as error:  # Qwen's refuses images more than 200 times as long as wide
            raise ImageRefusedError(
                f"The checkpoint's processor refuses an image of {image.width} x {image.height} pixels: "
                f"{error}"
            ) from error
        inputs = {name: value for name, value in made.items() if name not in _NOT_FOR_THE_ENCODER}
        return ImageInputs(tuple(made["input_ids"][0].tolist()), inputs, self._input_size(inputs, image))

    def _input_size(self, inputs: Mapping[str, torch.Tensor], image: Image.Image) -> tuple[int, int]:
        return grid_size(inputs, self._processor.image_processor) or image.size


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Those of one process: threads do not survive a fork."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "images")


def grid_size(inputs: Mapping[str, torch.Tensor], image_processor: Any) -> tuple[int, int] | None:
    """(width, height) in pixels of the one image that a processor resized to a grid of patches; None where
    it made something else of it."""
    if "image_grid_thw" not in inputs:
        return None
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    side = image_processor.patch_size
    return (columns * side, rows * side)


def resolution_of(family: Family, image_processor: Any) -> DynamicResolution | None:
    """How a checkpoint's image processor resizes images, by its own settings; as the family says where it is
    not Qwen2-VL's kind. None for a family whose encoder or tiles have one size."""
    if family.resolution is None or not _counts_pixels(image_processor):
        return family.resolution
    return DynamicResolution(
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )


def _counts_pixels(image_processor: Any) -> bool:
    """Whether a processor is of Qwen2-VL's kind: its "edges" are numbers of pixels and not lengths."""
    size = getattr(image_processor, "size", None) or {}
    return hasattr(image_processor, "merge_size") and "shortest_edge" in size and "longest_edge" in size


def bound_pixels(
    family: Family, image_processor: Any, min_pixels: int | None, max_pixels: int | None
) -> None:
    """Give an image processor other bounds for the pixels of every image; None leaves one unchanged.

    UserError for a family without dynamic resolution and for bounds that leave no size. They hold for the
    crop as well: it is enlarged within them.
    """
    if min_pixels is None and max_pixels is None:
        return
    own = resolution_of(family, image_processor)
    if own is None or not _counts_pixels(image_processor):
        raise needs_dynamic_resolution(given_bounds(min_pixels, max_pixels))
    bounds = own.within(min_pixels, max_pixels)
    size_type = type(image_processor.size)
    image_processor.size = size_type(shortest_edge=bounds.min_pixels, longest_edge=bounds.max_pixels)


def joined(images: Sequence[ImageInputs]) -> dict[str, torch.Tensor]:
    """The encoder's input of several images in order. Where they differ in size or in their number of
    tiles, they are filled up with zeros at the end, as processors do."""
    batch: dict[str, torch.Tensor] = {}
    for name in images[0].inputs if images else ():
        parts = [image.inputs[name] for image in images]
        shape = [max(sides) for sides in zip(*(part.shape[1:] for part in parts), strict=True)]
        batch[name] = torch.cat([_filled(part, shape) for part in parts])
    return batch


def _filled(part: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """`part` (n, ...) with zeros at the end of every dimension but the first, up to (n, *shape)."""
    missing = [wanted - length for wanted, length in zip(shape, part.shape[1:], strict=True)]
    padding = [side for amount in reversed(missing) for side in (0, amount)]
    return torch.nn.functional.pad(part, padding) if any(missing) else part


def as_patch(image: ImageInputs, token: int, config: Any) -> ImageInputs:
    """An image of a family with tiles as one more tile of another: only the tokens of its whole view."""
    vision = config.vision_config
    return replace(image, ids=(token,) * (vision.image_size // vision.patch_size) ** 2)


def image_tokens(config: Any) -> int:
    """Tokens of one image where all have the same number, from a model's configuration alone."""
    vision: Any = getattr(config, "vision_config", None)
    if not hasattr(config, "vision_feature_select_strategy") or not hasattr(vision, "patch_size"):
        return config.image_seq_length
    features = (vision.image_size // vision.patch_size) ** 2 + class_tokens(config)
    return features - (config.vision_feature_select_strategy == "default")  # which leaves the first one out


def class_tokens(config: Any) -> int:
    """Features of the vision tower that stand for no patch: CLIP's towers alone have one."""
    return int(config.vision_config.model_type.startswith("clip"))


def complete_processor(processor: Any, config: Any) -> None:
    """Give a processor what decides the number of an image's tokens and older files of checkpoints leave out:
    the patch size and the choice of features are the model's own, and so is a class token.

    UserError where a class token would lie among tiles: no release of transformers can put them together.
    """
    vision: Any = getattr(config, "vision_config", None)
    tiled = getattr(config, "image_grid_pinpoints", None) is not None
    if tiled and getattr(config, "vision_feature_select_strategy", None) == "full" and class_tokens(config):
        raise UserError(
            "The checkpoint's config.json has vision_feature_select_strategy 'full' with a CLIP tower and "
            "tiles, but a class token has no place among tiles. Set it to 'default' there."
        )
    images: Any = getattr(processor, "image_processor", None)
    if _counts_pixels(images):
        images.patch_size = vision.patch_size
    if hasattr(processor, "patch_size") and processor.patch_size is None:
        processor.patch_size = vision.patch_size
    if hasattr(processor, "vision_feature_select_strategy"):
        strategy = getattr(config, "vision_feature_select_strategy", None)
        processor.vision_feature_select_strategy = strategy or processor.vision_feature_select_strategy
    if hasattr(processor, "num_additional_image_tokens"):
        processor.num_additional_image_tokens = class_tokens(config)
