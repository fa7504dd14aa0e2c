"""The two protocols by name: the paper's text, and the authors' release where it differs."""

from __future__ import annotations

from dataclasses import dataclass

from dualfocus_lmms.errors import choose
from dualfocus_lmms.prompts import PROMPTS, Prompts
from dualfocus_lmms.zoom import CropPixels, Geometry, paper_rectangle, release_rectangle


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a protocol fixes.

    prompts: the wordings of Q1 and Q2. geometry: from a box to the pixels that are cropped. margin: pixels
    the region grows on each side. rule: default selection rule. count_eos: whether end-of-turn tokens
    count in the perplexity. locate_tokens: longest reply to Q1, in tokens. crop_pixels: to how many pixels
    the crop is enlarged, see `zoom.zoomed`.
    """

    name: str
    prompts: Prompts
    geometry: Geometry
    margin: int
    rule: str
    count_eos: bool
    locate_tokens: int
    crop_pixels: CropPixels


PROTOCOLS = {
    "paper": Protocol("paper", PROMPTS["paper"], paper_rectangle, 0, "ppl", False, 64, "auto"),
    "release": Protocol(
        "release", PROMPTS["release"], release_rectangle, 25, "release", True, 128, "original"
    ),
}


def load_protocol(name: str) -> Protocol:
    """The protocol called `name`; UserError lists the known ones."""
    if name not in PROTOCOLS:
        raise choose("protocol", name, sorted(PROTOCOLS))
    return PROTOCOLS[name]
