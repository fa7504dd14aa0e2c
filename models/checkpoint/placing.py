"""Where a model may be placed, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dualfocus_lmms.errors import UserError, choose


def check_placing(device: str | None, device_map: str | Mapping[str, Any] | None) -> None:
    """UserError where a model cannot be placed so. device_map: "auto", or which parts go where."""
    if device_map not in (None, "auto") and not isinstance(device_map, Mapping):
        raise choose("device_map", device_map, ["auto"])
    if device_map is not None and device is not None:
        raise UserError(
            f"device={device} holds the whole model, device_map=auto spreads it over all GPUs: "
            "give one of the two. CUDA_VISIBLE_DEVICES=0,1 chooses the GPUs."
        )
