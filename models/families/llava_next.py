"""LLaVA-NeXT (LLaVA-1.6, `LlavaNextForConditionalGeneration`): the image, and up to four tiles of it.

The paper's LLaVA-HighRes is this architecture trained on the paper's data (table 6).
"""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.llava import LANGUAGE_MODEL, VICUNA_V1

LLAVA_NEXT = Family(
    name="llava_next",
    model_types=("llava_next",),
    box_format=BoxFormat("[{:.2f}, {:.2f}, {:.2f}, {:.2f}]", scale=1, frame="original"),
    image="as_is",
    chat_template=VICUNA_V1,
    lora_targets=LANGUAGE_MODEL,
    local_patches=True,
)
