"""InternVL 2.5 to 3.5 in transformers' format (`InternVLForConditionalGeneration`): tiles, thousandths."""

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.family import Family
from dualfocus_lmms.models.families.chatml import chatml
from dualfocus_lmms.models.families.llava import LANGUAGE_MODEL

INTERNVL = Family(
    name="internvl",
    model_types=("internvl",),
    box_format=BoxFormat("<box>[[{:d}, {:d}, {:d}, {:d}]]</box>", scale=1000, frame="original"),
    image="as_is",
    chat_template=chatml("<IMG_CONTEXT>\n"),
    lora_targets=LANGUAGE_MODEL,
    native_locate=(
        "Please provide the bounding box coordinate of the region this question asks about: "
        "<ref>{question}</ref>"
    ),
)
