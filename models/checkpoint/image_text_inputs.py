"""A checkpoint's inputs: conversations as token ids, images as encoder input. Weights are not touched."""

from __future__ import annotations

import inspect
from typing import Any

import transformers

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.checkpoint.chat_template import PROBE, apply_template, choose_template
from dualfocus_lmms.models.checkpoint.image_inputs import (
    FixedSizeImages,
    ProcessorImages,
    image_tokens,
    resolution_of,
)
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.checkpoint.tokenize_chat import Renderer

# The model's argument for a mask (B, L) of the tokens of images.
_TYPES = ("mm_token_type_ids", "token_type_ids")
# The processor's attribute for the text that stands for an image.
_PLACEHOLDERS = ("image_token", "boi_token")


def reader(checkpoint: Checkpoint) -> tuple[Renderer, FixedSizeImages | ProcessorImages]:
    """The renderer and the image reader of a checkpoint, for inference and training alike."""
    model, family, tokenizer = checkpoint.model, checkpoint.family, checkpoint.tokenizer
    processor = checkpoint.processor
    token: int = model.config.image_token_id
    brought, asked = checkpoint.template, checkpoint.chat_template
    if processor is None:
        fixed = FixedSizeImages(family, checkpoint.image_processor, token, image_tokens(model.config))
        placeholder = tokenizer.convert_ids_to_tokens(token)
        _check_placeholder(tokenizer, placeholder or f"token {token}")
        template = choose_template(tokenizer, family, [placeholder], brought, asked)
        return Renderer(tokenizer, family, token, template), fixed
    known = [text for text in (getattr(processor, name, None) for name in _PLACEHOLDERS) if text]
    template = choose_template(tokenizer, family, known, brought or processor.chat_template, asked)
    written = apply_template(tokenizer, template.text, PROBE, True)
    image_text = next(text for text in known if text in written)
    _check_placeholder(tokenizer, image_text)
    renderer = Renderer(tokenizer, family, tokenizer.convert_tokens_to_ids(image_text), template)
    resolution = resolution_of(family, processor.image_processor)
    return renderer, ProcessorImages(processor, image_text, resolution)


def _check_placeholder(tokenizer: Any, placeholder: str) -> None:
    """UserError where the vocabulary lacks what stands for an image: a base model's, or half of the files."""
    if placeholder not in tokenizer.get_vocab():
        raise UserError(
            f"The checkpoint's tokenizer has no {placeholder!r}, which stands for an image: one of its files "
            "is missing (tokenizer.json, added_tokens.json), or it is another model's. Give the whole folder."
        )


def token_types(model: Any) -> list[str]:
    """The names by which the model takes the mask of its image tokens; most models take none.

    UserError where its images have positions of their own (`get_rope_index`) and it takes none of the names:
    without the mask they would get the positions of text.
    """
    accepted = inspect.signature(model.forward).parameters
    names = [name for name in _TYPES if name in accepted]
    if not names and hasattr(getattr(model, "model", None), "get_rope_index"):
        raise UserError(
            f"transformers {transformers.__version__} is not supported with {type(model).__name__}: its "
            f"forward takes none of {', '.join(_TYPES)}, by which it would know its image tokens. Install a "
            "release named in docs/compatibility.md."
        )
    return names
