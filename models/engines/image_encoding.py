"""Images through the vision encoder, each one once: its features, its ids in a prompt, its positions.

What transformers' releases name differently is checked here and in `check_release`, so that a missing part
raises instead of changing answers silently.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from PIL import Image

from dualfocus_lmms.conversation import Conversation
from dualfocus_lmms.models.checkpoint.image_inputs import ImageInputs, as_patch
from dualfocus_lmms.models.checkpoint.tokenize_chat import Rendered
from dualfocus_lmms.models.compatibility import rope_settings, unsupported_release
from dualfocus_lmms.models.engines.attention import steady_attention
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.engines.kv_cache import PrefixKey


@dataclass(frozen=True, eq=False, slots=True)
class EncodedImage:
    """An image that went through the encoder. features (n, D): one for each of its n tokens.

    token: the negative number that stands for it in a `PrefixKey`. deepstack: for Qwen3-VL, the features
    (n, D) that each of the first layers of the language model adds. image: kept, so that id(image) stays
    taken.
    """

    token: int
    image: Image.Image
    prepared: ImageInputs
    features: torch.Tensor
    deepstack: tuple[torch.Tensor, ...] = ()


class ImageEncoder:
    """The encoder of a model and what it returned for each image, by identity, until `keep` drops it."""

    def __init__(self, backend: ModelBackend) -> None:
        self._backend = backend
        self._model = backend.model.model
        self._encoder = self._model if hasattr(self._model, "get_image_features") else backend.model
        self._accepted = inspect.signature(self._encoder.get_image_features).parameters
        self._next_token = count(-1, -1)
        self.encoded: dict[int, EncodedImage] = {}  # by id(image)

    def __getitem__(self, image: Image.Image) -> EncodedImage:
        return self.encoded[id(image)]

    def get(self, image: Image.Image) -> EncodedImage | None:
        """What the encoder returned for `image`, None where it has not been encoded."""
        return self.encoded.get(id(image))

    def keep(self, images: Sequence[Image.Image]) -> set[int]:
        """The `PrefixKey` tokens of `images`; all other images are dropped."""
        self.encoded = {id(image): self[image] for image in images if id(image) in self.encoded}
        return {encoded.token for encoded in self.encoded.values()}

    def encode(self, conversations: Sequence[Conversation]) -> list[int]:
        """How many images were newly encoded for each conversation; those encoded before cost nothing."""
        patches = {id(patch) for conversation in conversations for patch in conversation.patches}
        new: dict[int, Image.Image] = {}
        new_encodes = []
        for conversation in conversations:
            before = len(new)
            new |= {id(image): image for image in conversation.images if id(image) not in self.encoded}
            new_encodes.append(len(new) - before)
        if new:
            self._encode_images(list(new.values()), patches)
        return new_encodes

    def _encode_images(self, images: Sequence[Image.Image], patches: Collection[int]) -> None:
        """Encode images and keep their features; of one whose id is in `patches` only its whole view's."""
        backend = self._backend
        prepared = backend.image_reader(images)
        lengths = [one.ids.count(backend.image_token_id) for one in prepared]
        inputs = self.arguments(backend.encoder_input(prepared))
        with steady_attention(backend.model.device):
            output = self._encoder.get_image_features(**inputs, return_dict=True)
        features = _flat(output.pooler_output).split(lengths)
        layers = [_flat(layer).split(lengths) for layer in self.deepstack_features(output)]
        deepstack = list(zip(*layers, strict=True)) if layers else [()] * len(images)
        for image, one, feature, layer in zip(images, prepared, features, deepstack, strict=True):
            if id(image) in patches:
                one = as_patch(one, backend.image_token_id, backend.model.config)
            kept = feature[: one.ids.count(backend.image_token_id)]
            self.encoded[id(image)] = EncodedImage(next(self._next_token), image, one, kept, layer)
        backend.counts.encodes += len(images)

    def arguments(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The encoder inputs that `get_image_features` takes, by name.

        Integers that it does not take (sizes, counts) are left out: of the families in `models/families` none
        is. UserError where it does not take a floating-point tensor: pixels would be lost.
        """
        lost = sorted(
            name for name, value in inputs.items() if name not in self._accepted and value.is_floating_point()
        )
        if lost:
            raise unsupported_release(
                f"get_image_features of {type(self._encoder).__name__} does not take {', '.join(lost)}"
            )
        return {name: value for name, value in inputs.items() if name in self._accepted}

    def deepstack_features(self, output: Any) -> Sequence[Any]:
        """The features for the first layers of the language model, one item a layer; none for most models.

        UserError where the configuration asks for them and the encoder returns none.
        """
        layers = getattr(output, "deepstack_features", None) or ()
        vision = getattr(self._backend.model.config, "vision_config", None)
        if not layers and getattr(vision, "deepstack_visual_indexes", None):
            raise unsupported_release(
                f"{type(self._encoder).__name__} has deepstack_visual_indexes, and its get_image_features "
                "returns no deepstack_features"
            )
        return layers

    def key(self, rendered: Rendered) -> PrefixKey:
        """The ids of a prompt, where each image's ids are replaced by its own negative number."""
        key = list(rendered.ids)
        for image, (start, length) in zip(rendered.images, rendered.spans, strict=True):
            key[start : start + length] = [self[image].token] * length
        return tuple(key)

    def positions(self, rendered: Rendered) -> torch.Tensor:
        """Positions (axes, L): one axis, or three (time, height, width) for models with M-RoPE.

        Always of the whole prompt, so that a second image gets the positions it would have without a cache.
        """
        if not hasattr(self._model, "get_rope_index"):
            return torch.arange(len(rendered.ids))[None]
        ids = torch.tensor([rendered.ids])
        grids = [self[image].prepared.inputs["image_grid_thw"] for image in rendered.images]
        types = (ids == self._backend.image_token_id).int()
        positions, _ = self._model.get_rope_index(
            ids, types, image_grid_thw=torch.cat(grids) if grids else None
        )  # (3, 1, L)
        return positions[:, 0]


def check_release(model: Any) -> None:
    """UserError where the text model has M-RoPE and this release of transformers has no `get_rope_index`
    where the engine calls it: its images would get the positions of text."""
    if hasattr(model.model, "get_rope_index"):
        return
    if any("mrope_section" in part for part in rope_settings(model.config.get_text_config())):
        raise unsupported_release(f"{type(model).__name__} has mrope_section and no get_rope_index")


def _flat(features: Any) -> torch.Tensor:
    """Features of images, a tensor (..., D) or one for each image, as (tokens, D)."""
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return torch.cat([part.flatten(0, -2) for part in parts])
