"""Qwen2-VL (`Qwen2VLForConditionalGeneration`): images of any size, boxes in thousandths between tags."""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.chatml import chatml
from dualfocus_lmms.models.families.llava import LANGUAGE_MODEL
from dualfocus_lmms.zoom import DynamicResolution

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SYSTEM = "You are a helpful assistant."
RESOLUTION = DynamicResolution(factor=28, min_pixels=56 * 56, max_pixels=3584 * 3584)  # 4 to 16,384 tokens

QWEN2_VL = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    box_format=BoxFormat("<|box_start|>({:d},{:d}),({:d},{:d})<|box_end|>", scale=1000, frame="original"),
    image="as_is",
    chat_template=chatml(IMAGE, SYSTEM),
    lora_targets=LANGUAGE_MODEL,
    native_locate='Detect the bounding box of the region needed to answer the question "{question}"',
    resolution=RESOLUTION,
)
