"""How a checkpoint reads: conversations as token ids, pictures as encoder input. Weights are not touched."""

from __future__ import annotations

import inspect
from typing import Any

from dualfocus_lmms.models.loading import Checkpoint
from dualfocus_lmms.models.pictures import FixedPictures, ProcessedPictures, image_tokens
from dualfocus_lmms.models.rendering import Renderer, placeholder

# What models call a mask (B, L) of the tokens that stand for pictures.
_TYPES = ("mm_token_type_ids", "token_type_ids")
_WORDS = ("image_token", "boi_token")  # what processors call the text that stands for a picture


def reader(checkpoint: Checkpoint) -> tuple[Renderer, FixedPictures | ProcessedPictures]:
    """The renderer and the pictures of a checkpoint, for inference and training alike."""
    model, family, tokenizer = checkpoint.model, checkpoint.family, checkpoint.tokenizer
    processor = checkpoint.processor
    token: int = model.config.image_token_id
    if processor is None:
        fixed = FixedPictures(family, checkpoint.image_processor, token, image_tokens(model.config))
        return Renderer(tokenizer, family, token), fixed
    template = processor.chat_template or tokenizer.chat_template or family.chat_template
    known = [word for word in (getattr(processor, name, None) for name in _WORDS) if word]
    word = placeholder(tokenizer, template, known)
    renderer = Renderer(tokenizer, family, tokenizer.convert_tokens_to_ids(word), template)
    return renderer, ProcessedPictures(processor, word)


def token_types(model: Any) -> list[str]:
    """By which names the model reads which tokens are a picture's, most by none."""
    accepted = inspect.signature(model.forward).parameters
    return [name for name in _TYPES if name in accepted]
