"""The region that a model itself attends to, without training or a second model.

After "MLLMs Know Where to Look" (ICLR 2025). Where the answer would begin, the model's attention to each
image token for the question is divided by that for a generic question; the window in which the quotient
stands out most is the region (`grounding=attention`). `grounding=attention_plain` does not divide. What was
chosen, and why: docs/grounding.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps

from dualfocus_lmms.attention_map import AttentionMap
from dualfocus_lmms.boxes import Box, Frame
from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.errors import GenerationError, UserError
from dualfocus_lmms.grounding import Attended, Grounder
from dualfocus_lmms.models.checkpoint.image_inputs import ImageInputs
from dualfocus_lmms.models.compatibility import cache_argument
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.prompts import SHORT_ANSWER
from dualfocus_lmms.types import Backend, Question

GENERIC = "Write a general description of the image."
QWEN_SIDE = 224  # pixels that stand for the side of an encoder's input where it may have any size
ZOOMS = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0)  # sides of a window, in sides of the encoder's input

HEAT_SIDE = 1024  # pixels

_LEAST = 1e-8  # attention is at least this, so that nothing is divided by zero


@dataclass(frozen=True, slots=True)
class Grid:
    """What an image's tokens show: rows x columns cells that cover `frame` evenly, row by row.

    first: the number of the first of them among the image's tokens. side: pixels of the encoder's input.
    """

    rows: int
    columns: int
    frame: Frame
    side: int
    first: int = 0


def attention_grounder(backend: Backend, relative: bool = True, keep_maps: bool = False) -> Grounder:
    """The grounding by the attention of `backend`; relative divides it by that for GENERIC.

    keep_maps: with each region comes the attention that it was chosen from. UserError where the backend is no
    model in this process, or its image tokens have no known layout.
    """
    model = _readable(backend)

    def attended_region(question: Question) -> Box | Attended:
        weights, cells = _attended(model, question.image, question.text, relative)
        box = region(weights, cells, question.image.size)
        return Attended(box, attention_map(weights, cells, question.image.size)) if keep_maps else box

    return attended_region


def heat_map(backend: Backend, image: Image.Image, text: str, relative: bool = True) -> Image.Image:
    """The attention from which `attention_grounder` chooses the region for the question `text`.

    Of the shape of `image`, at most HEAT_SIDE pixels a side, grey: 0 where it is lowest, 255 where it is
    highest. UserError as for `attention_grounder`.
    """
    weights, cells = _attended(_readable(backend), image, text, relative)
    scale = min(1.0, HEAT_SIDE / max(image.size))
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return ImageOps.autocontrast(attention_map(weights, cells, image.size).image(size))


def attention_map(weights: torch.Tensor, cells: Grid, size: tuple[int, int]) -> AttentionMap:
    """`weights` of the cells that show some of the image, of `size` (width, height), as traces keep them."""
    left, top, width, height = _frame(cells.frame, size)
    rows, columns = _visible_cells(cells, size)
    x0, x1 = ((left + width * edge / cells.columns) / size[0] for edge in columns)
    y0, y1 = ((top + height * edge / cells.rows) / size[1] for edge in rows)
    seen = weights[slice(*rows), slice(*columns)]
    return AttentionMap.of(Image.fromarray(seen.numpy()), (x0, y0, x1, y1))


def _attended(
    backend: ModelBackend, image: Image.Image, text: str, relative: bool
) -> tuple[torch.Tensor, Grid]:
    """(rows, columns) the attention to each cell of the image, relative to GENERIC or not, and the cells."""
    (image_inputs,) = backend.image_reader([image])
    weights = attention(backend, image, image_inputs, text)
    if relative:
        weights = weights / attention(backend, image, image_inputs, GENERIC)
    return weights, grid(backend, image_inputs)


# --- where the tokens of an image lie ---------------------------------------------------------------------


def grid(backend: ModelBackend, image_inputs: ImageInputs) -> Grid:
    """How the tokens of an image lie."""
    return GRIDS[backend.model.config.model_type](backend, image_inputs)


def _readable(backend: Backend) -> ModelBackend:
    """The backend; UserError where it is no model in this process, or its image tokens have no known
    layout."""
    if not isinstance(backend, ModelBackend):
        raise UserError(
            "A grounding by attention reads that of a model in this process, and there is none behind "
            f"{type(backend).__name__}. Use --model dualfocus with a checkpoint, or another grounding."
        )
    kind, family = backend.model.config.model_type, backend.checkpoint.family
    if kind not in GRIDS:
        raise UserError(
            "A grounding by attention must know which part of an image each image token shows, as it does "
            f"for {', '.join(sorted(GRIDS))}, not for {kind!r}. Choose another grounding."
        )
    if kind == "llava" and family.image != "square":
        raise UserError(
            f"A grounding by attention needs images padded to a square, and family {family.name!r} hands "
            "them to the checkpoint's own image processor, which may cut them. Choose another grounding."
        )
    return backend


def _squared(backend: ModelBackend, image_inputs: ImageInputs) -> Grid:
    """One token for each patch of the padded square, after the encoder's class token where it is kept."""
    count, side = _patches(backend)
    first = 0 if backend.model.config.vision_feature_select_strategy == "default" else 1
    return Grid(count, count, "square", side, first)


def _base_view(backend: ModelBackend, image_inputs: ImageInputs) -> Grid:
    """The whole image, stretched to a square, comes before its tiles; the tiles are not used."""
    count, side = _patches(backend)
    return Grid(count, count, "original", side)


def _patches(backend: ModelBackend) -> tuple[int, int]:
    """(patches along a side of the encoder's input, pixels along it)."""
    vision = backend.model.config.vision_config
    return vision.image_size // vision.patch_size, vision.image_size


def _resized(backend: ModelBackend, image_inputs: ImageInputs) -> Grid:
    """Patches of the resized image, merged in squares; QWEN_SIDE where any size is the encoder's input."""
    _, rows, columns = image_inputs.inputs["image_grid_thw"][0].tolist()
    merged = backend.model.config.vision_config.spatial_merge_size
    return Grid(rows // merged, columns // merged, "original", QWEN_SIDE)


# By `model_type` of config.json.
GRIDS: dict[str, Callable[[ModelBackend, ImageInputs], Grid]] = {
    "llava": _squared,
    "llava_next": _base_view,
    "llava_onevision": _base_view,
    "qwen2_vl": _resized,
    "qwen2_5_vl": _resized,
    "qwen3_vl": _resized,
}


# --- attention ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def attention(
    backend: ModelBackend, image: Image.Image, image_inputs: ImageInputs, text: str
) -> torch.Tensor:
    """Attention to each cell of the image where the answer to `text` would begin, at least _LEAST.

    image: what the model reads of `image`. The mean over the heads of the middle third of the layers,
    (rows, columns) float32 on the CPU. All tokens but the last are read as always, and the last one alone
    returns its weights: no (L, L) matrix.
    """
    conversation = Conversation().user(f"{text}\n{SHORT_ANSWER}", image)
    rendered = backend.renderer.render(conversation, lambda _: image_inputs.ids)
    prompt = backend.prompt_input(torch.tensor([rendered.ids], device=backend.model.device))  # (1, L) each
    before = {name: value[:, :-1] for name, value in prompt.items()}
    cache = cache_argument(backend.model.forward)
    read = backend.model(**before, **backend.encoder_input([image_inputs]), use_cache=True)
    with _visible(backend.model):
        last = backend.model(
            input_ids=prompt["input_ids"][:, -1:],  # without a mask: Qwen would give it every position
            use_cache=True,
            **{cache: read[cache]},
            output_attentions=True,
        )
    layers = torch.stack(
        [layer[0, :, -1].float() for layer in _middle(last.attentions)]
    )  # (layers, heads, L)
    cells = grid(backend, image_inputs)
    start = rendered.spans[0][0] + cells.first
    weights = layers.mean((0, 1))[start : start + cells.rows * cells.columns]
    if not bool(weights.isfinite().all()):
        raise GenerationError(
            "The model's attention holds values that are not numbers. Try dtype=float32 or bfloat16."
        )
    return weights.clamp(min=_LEAST).reshape(cells.rows, cells.columns).cpu()


@contextmanager
def _visible(model: Any) -> Iterator[None]:
    """The language model with attention that gives its weights; as before afterwards."""
    language_model = model.model.language_model
    usual = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(usual)


def _middle(layers: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The middle third of the layers, rounded outwards."""
    return layers[len(layers) // 3 : -(-2 * len(layers) // 3)]


# --- the window --------------------------------------------------------------------------------------------


def region(weights: torch.Tensor, cells: Grid, size: tuple[int, int]) -> Box:
    """The square window of the original image, of `size` (width, height), in which `weights` stand out most.

    Its side is one to two times that of the encoder's input, in pixels of the image; an image that is not
    larger is its own window. Of every side it is tried where the mean weight is highest; the side is chosen
    whose mean lies furthest above those of the windows beside it.
    """
    frame = _frame(cells.frame, size)  # left, top, width, height in pixels of the image
    cell = frame[2] / cells.columns, frame[3] / cells.rows
    (top, bottom), (left, right) = _visible_cells(cells, size)
    inside = weights[top:bottom, left:right]
    best, found = -1.0, (size[0] / 2, size[1] / 2, float(max(size)))
    for zoom in ZOOMS:
        side = zoom * cells.side
        shape = [
            min(max(int(side / length), 1), count)
            for length, count in zip(cell[::-1], inside.shape, strict=True)
        ]
        if tuple(shape) == tuple(inside.shape):
            break  # the whole image, and so would be all larger ones
        row, column, difference = _peak(inside, *shape)
        if difference > best:
            x = frame[0] + (left + column + shape[1] / 2) * cell[0]
            y = frame[1] + (top + row + shape[0] / 2) * cell[1]
            best, found = difference, (x, y, side)
    return _square(*found, size)


def _frame(frame: Frame, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width and height of what the cells cover, in pixels of the original image."""
    width, height = size
    if frame != "square":
        return 0.0, 0.0, float(width), float(height)
    side = max(size)
    return (width - side) / 2, (height - side) / 2, float(side), float(side)


def _visible_cells(cells: Grid, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first, end) of the rows and of the columns that show some of the image, and not only padding."""
    left, top, width, height = _frame(cells.frame, size)
    return _touched(-top, size[1], height / cells.rows), _touched(-left, size[0], width / cells.columns)


def _touched(start: float, length: int, cell: float) -> tuple[int, int]:
    """(first, end) of the cells that show something of the image, which takes start..start + length."""
    end = round((start + length) / cell, 6)
    return int(round(start / cell, 6)), int(end) + (end > int(end))


def _peak(weights: torch.Tensor, rows: int, columns: int) -> tuple[int, int, float]:
    """(row, column, by how much) of the window of rows x columns cells with the highest mean.

    By how much: it lies above the mean of the windows one cell beside it.
    """
    means = torch.nn.functional.avg_pool2d(weights[None], (rows, columns), stride=1)[0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    near = [means[y, x] for y, x in beside if 0 <= y < means.shape[0] and 0 <= x < means.shape[1]]
    return row, column, float(means[row, column] - torch.stack(near).mean())


def _square(x: float, y: float, side: float, size: tuple[int, int]) -> Box:
    """The square around (x, y), all in pixels, moved into the image and no larger than it is."""
    low, high = [], []
    for centre, length in zip((x, y), size, strict=True):
        extent = min(side, length)
        start = min(max(centre - extent / 2, 0), length - extent)
        low.append(start / length)
        high.append((start + extent) / length)
    return Box(low[0], low[1], high[0], high[1])
