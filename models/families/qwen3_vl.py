"""Qwen3-VL (`Qwen3VLForConditionalGeneration`): boxes as JSON, in thousandths of the image."""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.chatml import chatml
from dualfocus_lmms.models.families.llava import LANGUAGE_MODEL
from dualfocus_lmms.models.families.qwen2_5_vl import NATIVE_LOCATE
from dualfocus_lmms.models.families.qwen2_vl import IMAGE
from dualfocus_lmms.zoom import DynamicResolution

QWEN3_VL = Family(
    name="qwen3_vl",
    model_types=("qwen3_vl", "qwen3_vl_moe"),
    box_format=BoxFormat('{{"bbox_2d": [{:d}, {:d}, {:d}, {:d}]}}', scale=1000, frame="original"),
    image="as_is",
    chat_template=chatml(IMAGE),
    lora_targets=LANGUAGE_MODEL,
    native_locate=NATIVE_LOCATE,
    resolution=DynamicResolution(factor=32, min_pixels=256 * 256, max_pixels=4096 * 4096),
)
