"""Whether the engines that share computed prefixes can run a model, and if not, why."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.models.checkpoint.loading import Checkpoint
from dualfocus_lmms.models.engines.image_encoding import check_release


def language_model(model: Any) -> Any:
    """The decoder of a model with its embeddings, without its head: transformers has two names for it. None
    where it is no module of its own."""
    inner = model.model
    return getattr(inner, "language_model", None) or getattr(inner, "text_model", None)


def check_shareable(checkpoint: Checkpoint) -> None:
    """UserError where the engines shared, template and tree cannot run a checkpoint, with every reason."""
    reasons = _obstacles(checkpoint)
    if reasons:
        raise UserError(
            f"Only the engines batched and naive can run {type(checkpoint.model).__name__} as family "
            f"{checkpoint.family.name!r}: {'; '.join(reasons)}. Give engine=batched, which gives the same "
            "answers as naive in whole batches."
        )
    check_release(checkpoint.model)


def _obstacles(checkpoint: Checkpoint) -> list[str]:
    """What keeps prefixes of a model from being computed once, kept and forked."""
    model = checkpoint.model
    text = model.config.get_text_config()
    layers: list[Any] = DynamicCache(config=text).layers
    kinds = set(getattr(text, "layer_types", None) or ())
    found = []
    if language_model(model) is None or not hasattr(model, "get_image_features"):
        found.append("it has no language model apart from its vision encoder")
    if "linear_attention" in kinds:
        found.append(
            "its layers of linear attention keep one state for all earlier tokens, of which no prefix can be "
            "cut or padded"
        )
    windows = {layer.sliding_window for layer in layers if getattr(layer, "is_sliding", False)}
    if windows:
        found.append(
            f"some of its layers keep only the last {max(windows)} tokens, so that a kept prefix would lack "
            "its beginning"
        )
    if getattr(text, "use_bidirectional_attention", None):
        found.append("tokens of an image attend to later ones")
    if getattr(text, "hidden_size_per_layer_input", None):
        found.append("each layer reads the token ids again")
    if not found and {type(layer) for layer in layers} - {DynamicLayer}:
        found.append("its cache is of another kind than keys and values of every token")
    if not found and checkpoint.family.engine != "tree":
        found.append("nothing is known about its attention")
    return found
