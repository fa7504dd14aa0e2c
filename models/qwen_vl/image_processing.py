"""What Qwen-VL does to an image: stretched to a square, without crop or border, and normalised as CLIP's."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, CLIPImageProcessorPil

from dualfocus_lmms.models.qwen_vl.configuration import QwenVLConfig


def qwen_image_processor(config: QwenVLConfig) -> CLIPImageProcessorPil:
    """The image processor that belongs to a configuration."""
    side = config.visual["image_size"]
    return CLIPImageProcessorPil(size={"height": side, "width": side}, do_center_crop=False)


def load_qwen_image_processor(pretrained: str, revision: str | None = None) -> Any:
    """The checkpoint's own image processor, or, in the published layout, which has none, the one of its
    configuration."""
    try:
        return AutoImageProcessor.from_pretrained(
            pretrained, revision=revision, backend="pil", trust_remote_code=False
        )
    except OSError:  # no preprocessor_config.json
        config = AutoConfig.from_pretrained(pretrained, revision=revision, trust_remote_code=False)
        return qwen_image_processor(config)
