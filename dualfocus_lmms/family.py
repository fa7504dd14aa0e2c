"""A model family, as data. One file in `models/families/` for each of ours; other packages may bring more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dualfocus_lmms.boxes import BoxFormat


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between vision-language models, apart from their weights.

    name: as users write it. model_types: the `model_type` values of config.json it handles. box_format: how
    it writes a box. image: "square" pads every picture to a square with the encoder's mean colour before it
    is resized, "as_is" hands it to the checkpoint's own image processor. chat_template: Jinja, used only when
    the tokenizer brings none. lora_targets: regular expression over module names that LoRA adapts.
    """

    name: str
    model_types: tuple[str, ...]
    box_format: BoxFormat
    image: Literal["square", "as_is"]
    chat_template: str
    lora_targets: str
