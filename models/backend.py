"""What all engines share: pictures in, tokens judged, answers out, work counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from dualfocus_lmms.errors import GenerationError
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.loading import Checkpoint
from dualfocus_lmms.models.rendering import Renderer
from dualfocus_lmms.types import Answer, Limits, Stage, Usage
from dualfocus_lmms.zoom import pad_to_square


@dataclass(slots=True)
class Counts:
    """Work done since the engine was made.

    forwards: calls of the language model, a batch counting once. tokens: language-model tokens computed,
    padding not counted. encodes: pictures that went through the vision encoder.
    """

    forwards: int = 0
    tokens: int = 0
    encodes: int = 0


class Pictures:
    """Encoder input of pictures, padded to a square first where the family says so. Needs no weights."""

    def __init__(self, family: Family, image_processor: Any) -> None:
        self._square = family.image == "square"
        self._processor = image_processor
        mean = getattr(image_processor, "image_mean", None) or (0.0, 0.0, 0.0)
        self._pad_color = tuple(int(value * 255) for value in mean)

    def __call__(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """(N, 3, H, W) of N pictures, float32 on the CPU."""
        pictures = [image.convert("RGB") for image in images]
        if self._square:
            pictures = [pad_to_square(picture, self._pad_color) for picture in pictures]  # type: ignore[arg-type]
        return self._processor(images=pictures, return_tensors="pt")["pixel_values"]


def image_tokens(config: Any) -> int:
    """Tokens of one picture, from a LLaVA configuration alone: one for each patch of the encoder's input."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return patches if config.vision_feature_select_strategy == "default" else patches + 1


class ModelBackend:
    """A checkpoint with its renderer and image handling; engines add `generate`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model = checkpoint.model
        self.tokenizer = checkpoint.tokenizer
        self.box_format = checkpoint.family.box_format
        self.image_token_id: int = self.model.config.image_token_id
        self.renderer = Renderer(checkpoint.tokenizer, checkpoint.family, self.image_token_id)
        self.counts = Counts()
        self.eos_ids = _eos_ids(self.model, self.tokenizer)
        self._to_pixels = Pictures(checkpoint.family, checkpoint.image_processor)

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Encoder input (N, 3, H, W) of N pictures, on the model's device and in its type."""
        return self._to_pixels(images).to(self.model.device, self.model.dtype)

    def stopped(self, tokens: Sequence[int], limits: Limits) -> bool:
        """Whether the text of `tokens` contains a stop string."""
        return bool(limits.stop) and _first_stop(self.decode(tokens), limits.stop) is not None

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def answer(
        self,
        stage: Stage,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        ended: bool,
        limits: Limits,
        usage: Usage,
    ) -> Answer:
        """The answer made of generated tokens, cut before the first stop string.

        Raises GenerationError when a log-probability is not a finite number.
        """
        if not all(math.isfinite(value) for value in logprobs):
            raise GenerationError(
                f"The model produced logits that are not numbers in the {stage} stage, token {len(tokens)}. "
                "Try dtype=float32 or bfloat16, and check the checkpoint's weights."
            )
        text = self.decode(tokens)
        cut = _first_stop(text, limits.stop)
        if cut is not None:
            kept = max(n for n in range(len(tokens) + 1) if len(self.decode(tokens[:n])) <= cut)
            # An answer of nothing but a stop string keeps its first token: its perplexity must stay defined.
            kept = max(kept, 1)
            text, tokens, logprobs, ended = text[:cut], tokens[:kept], logprobs[:kept], False
        return Answer(stage, text.strip(), tuple(tokens), tuple(logprobs), ended, usage)


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, None without one."""
    found = [text.find(stop) for stop in stops if stop and stop in text]
    return min(found) if found else None


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends a turn: the checkpoint's generation settings and the tokenizer's own."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)
