"""What differs between releases of transformers, and the error for a release that lacks a needed part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import transformers

from dualfocus_lmms.errors import UserError


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name by which a forward takes and returns its cache: "cache" since transformers 5.24, before that
    and in models of other packages "past_key_values"."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def rope_settings(config: Any) -> list[Mapping[str, Any]]:
    """The settings of rotary positions of a text model: one, or one for each type of layer."""
    given = [getattr(config, name, None) or {} for name in ("rope_parameters", "rope_scaling")]
    parts = [part for settings in given for part in (settings, *settings.values())]
    return [part for part in parts if isinstance(part, Mapping)]


def unsupported_release(reason: str) -> UserError:
    """The error where the fast engines would compute something else than the model with this release."""
    return UserError(
        f"The fast engines do not support transformers {transformers.__version__} with this model: {reason}. "
        "Give engine=batched, or install a release named in docs/compatibility.md."
    )
