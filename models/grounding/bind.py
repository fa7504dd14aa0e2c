"""Groundings that need a model, tied to it. Those without one are in `dualfocus_lmms.grounding`."""

from __future__ import annotations

from dataclasses import replace

from dualfocus_lmms.grounding import DINO, MODEL_GROUNDINGS, PLAIN_ATTENTION
from dualfocus_lmms.models.checkpoint.loading import torch_device
from dualfocus_lmms.models.engines.backend import ModelBackend
from dualfocus_lmms.models.grounding.attention import attention_grounder
from dualfocus_lmms.models.grounding.dino import Detector
from dualfocus_lmms.settings import Settings
from dualfocus_lmms.types import Backend


def bind_grounding(settings: Settings, backend: Backend) -> Settings:
    """`settings` with the grounder that its grounding needs, loaded; as they are where it needs no model.

    UserError where the detector cannot be loaded or the backend cannot return its attention.
    """
    if settings.grounding not in MODEL_GROUNDINGS:
        return settings
    if settings.grounding != DINO:
        plain = settings.grounding == PLAIN_ATTENTION
        return replace(settings, grounder=attention_grounder(backend, not plain, settings.keep_maps))
    assert settings.grounding_checkpoint is not None
    device = backend.model.device if isinstance(backend, ModelBackend) else torch_device(None)
    detector = Detector(settings.grounding_checkpoint, device, several=settings.separate)
    return replace(settings, grounder=detector)
