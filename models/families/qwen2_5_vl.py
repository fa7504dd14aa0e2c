"""Qwen2.5-VL (`Qwen2_5_VLForConditionalGeneration`): boxes as JSON, in pixels of the RESIZED image."""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.chatml import chatml
from dualfocus_lmms.models.families.llava import LANGUAGE_MODEL
from dualfocus_lmms.models.families.qwen2_vl import IMAGE, RESOLUTION, SYSTEM

NATIVE_LOCATE = (
    "Locate the region of the image that is needed to answer this question, "
    "report its bbox coordinates in JSON format: {question}"
)

QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl",),
    box_format=BoxFormat('{{"bbox_2d": [{:d}, {:d}, {:d}, {:d}]}}', frame="resized"),
    image="as_is",
    chat_template=chatml(IMAGE, SYSTEM),
    lora_targets=LANGUAGE_MODEL,
    native_locate=NATIVE_LOCATE,
    resolution=RESOLUTION,
)
