"""The small model that comes with the project: its architecture, its tokenizer, and where its weights are.

A `LlavaForConditionalGeneration` like any other; no code at inference depends on its size.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerFast,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from dualfocus_lmms.models.tiny.llava import IMAGE_TOKEN, character_tokenizer
from dualfocus_lmms.prompts import SHORT_ANSWER

SIDE = 96  # pixels of the encoder's input
PATCH = 12
GRID = SIDE // PATCH
WIDTH = 128
IMAGE_MEAN = tuple(OPENAI_CLIP_MEAN)

_WORDS = [
    "what",
    "which",
    "is",
    "there",
    "a",
    "an",
    "the",
    "in",
    "of",
    "on",
    "this",
    "that",
    "and",
    "to",
    "are",
    "how",
    "many",
    "image",
    "picture",
    "digit",
    "number",
    "shape",
    "shapes",
    "region",
    "question",
    "asking",
    "about",
    "asks",
    "provide",
    "please",
    "coordinates",
    "coordinate",
    "bounding",
    "box",
    "sentence",
    "describes",
    "short",
    "description",
    "for",
    "combine",
    "these",
    "two",
    "images",
    "answer",
    "information",
    "from",
    "left",
    "right",
    "above",
    "below",
    "circle",
    "square",
    "triangle",
    "red",
    "green",
    "blue",
    "yellow",
    "yes",
    "no",
    "everything",
    "list",
]
_PIECES = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    f"\n{SHORT_ANSWER}",
    "USER:",
    " ASSISTANT:",
    *(f" {digit}" for digit in range(10)),
    " [0.",
    " [1.",
    ", 0.",
    ", 1.",
)


def nano_tokenizer() -> PreTrainedTokenizerFast:
    """Words of the scenes' questions, pieces of boxes, and single characters for everything else.

    A box is 13 tokens.
    """
    forms = [
        blank + form
        for word, blank in product(_WORDS, ("", " "))
        for form in (word, word.capitalize())
        if len(word) > 1 or blank
    ]
    return character_tokenizer([*_PIECES, *dict.fromkeys(forms)])


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )


def nano_config(tokenizer: Any) -> LlavaConfig:
    """The configuration of the small model: about 1.6 million parameters."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=GRID**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def normalize(pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) float32 encoder input of (N, H, W, 3) uint8 pixels of its size, on their device."""
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(np.array(pixels))
    mean, deviation = (
        torch.tensor(values, device=pixels.device).view(1, 3, 1, 1)
        for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / deviation
