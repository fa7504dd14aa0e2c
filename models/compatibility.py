"""What is called otherwise in another release of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name by which a forward takes and returns its cache: "cache" since transformers 5.24, before that
    and in models of other packages "past_key_values"."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
