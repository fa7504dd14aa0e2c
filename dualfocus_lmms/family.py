"""A model family, as data. One file in `models/families/` for each of ours; other packages may bring more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dualfocus_lmms.boxes import BoxFormat
from dualfocus_lmms.zoom import DynamicResolution

EngineName = Literal["tree", "template", "shared", "batched", "naive"]


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between vision-language models, apart from their weights.

    name: as users write it. model_types: the `model_type` values of config.json it handles. box_format: how
    it writes a box. image: "square" pads every image to a square with the encoder's mean colour before it
    is resized, "as_is" hands it to the checkpoint's own processor. chat_template: Jinja, used when the
    checkpoint brings none or a rewording of it. reworded: what a rewording leaves out of the rendered text,
    all of it; empty where no checkpoint's template is taken for one. lora_targets: regular expression over
    module names that LoRA adapts. native_locate: the wording by which the model learned to return a box
    before any DualFocus training, with the placeholder {question}; None without one. local_patches: whether
    an image becomes tiles, so that the sub-image can join them as one more (table 6). engine: "batched" where
    the engines that share computed prefixes do not work for it. resolution: for a family whose images have as
    many tokens as their size requires, with the bounds that its authors document (a checkpoint's own
    processor wins); None where its encoder or its tiles have one size, which enlarges every crop by itself.
    """

    name: str
    model_types: tuple[str, ...]
    box_format: BoxFormat
    image: Literal["square", "as_is"]
    chat_template: str
    lora_targets: str
    reworded: tuple[str, ...] = ()
    native_locate: str | None = None
    local_patches: bool = False
    engine: Literal["tree", "batched", "naive"] = "tree"
    resolution: DynamicResolution | None = None
