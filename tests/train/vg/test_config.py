"""The settings of the build from Visual Genome."""

from __future__ import annotations

from typing import Any

import pytest

from dualfocus_lmms.errors import UserError
from dualfocus_lmms.train.vg.config import VGConfig


@pytest.mark.parametrize(
    "setting",
    [
        {"min_per_image": "lots"},
        {"max_per_image": 0},
        {"crop_quality": 900},
        {"use_given": "maybe"},
        {"same_object_iou": 1.5},
        {"min_object_pixels": True},
    ],
)
def test_settings_of_another_kind_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(setting))):
        VGConfig.load(**setting)
