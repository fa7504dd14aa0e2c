"""Qwen3.5 and 3.6 (`Qwen3_5ForConditionalGeneration`): Qwen3-VL's boxes, and mostly linear attention.

Its makers say that boxes stay in thousandths of the image; that they are written as Qwen3-VL writes them is
taken over from there. The prompt closes an empty reasoning, as every template of the family does that is
told enable_thinking=False.
"""

from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.chatml import chatml
from dualfocus_lmms.models.families.qwen2_5_vl import NATIVE_LOCATE
from dualfocus_lmms.models.families.qwen2_vl import IMAGE
from dualfocus_lmms.models.families.qwen3_vl import QWEN3_VL
from dualfocus_lmms.zoom import DynamicResolution

QWEN3_5 = Family(
    name="qwen3_5",
    model_types=("qwen3_5", "qwen3_5_moe"),
    box_format=QWEN3_VL.box_format,
    image="as_is",
    chat_template=chatml(IMAGE, before_reply="<think>\n\n</think>\n\n"),
    # With the large projections of linear attention.
    lora_targets=r".*language_model.*\.((q|k|v|o|gate|up|down|out)_proj|in_proj_(qkv|z))",
    native_locate=NATIVE_LOCATE,
    engine="batched",
    resolution=DynamicResolution(factor=32, min_pixels=256 * 256, max_pixels=4096 * 4096),
)
