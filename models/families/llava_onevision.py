"""LLaVA-OneVision (`LlavaOnevisionForConditionalGeneration`): SigLIP with tiles, on Qwen2.

Each image is tiled as if it were alone. The authors leave the tiles of several images in one
conversation out; kept, the first image's tokens are the same in both passes, and are computed once.
"""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.chatml import chatml
from dualfocus_lmms.models.families.llava import LANGUAGE_MODEL

LLAVA_ONEVISION = Family(
    name="llava_onevision",
    model_types=("llava_onevision",),
    box_format=BoxFormat("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", scale=1, frame="original"),
    image="as_is",
    chat_template=chatml("<image>\n"),
    lora_targets=LANGUAGE_MODEL,
    local_patches=True,
)
