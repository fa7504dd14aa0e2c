"""How DualFocus answers: a run's own choices on top of a protocol, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from dualfocus_lmms.errors import UserError, choose
from dualfocus_lmms.grounding import Grounder, detector_for, load_grounding
from dualfocus_lmms.joint_rules import JointRule
from dualfocus_lmms.plugins import load_rule
from dualfocus_lmms.prompts import PROMPTS
from dualfocus_lmms.protocol import Protocol, load_protocol
from dualfocus_lmms.selection import Rule
from dualfocus_lmms.zoom import CropPixels, check_crop_pixels

NATIVE = "native"  # prompts: Q1 as the model's family was trained with

Pathway = Literal["both", "macro"]
Subimage = Literal["turn", "patch"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How DualFocus answers: everything besides the model that decides an answer.

    pathway "macro" runs the plain model alone. skip_confidence, 0 to 1: locate and micro are skipped where
    the macro answer's confidence (geometric mean of its tokens' probabilities, 1/PPL) is above it; 1 never
    skips. grounding: where the region comes from; grounder gives its box, None means the model, and
    grounding_checkpoint is the detector of grounding "dino". box_shift:
    pixels of the original image by which the region, wherever it comes from, is moved before it is cropped.
    prompts: whose wordings of Q1 and Q2 the protocol has here; NATIVE is Q1 of the model's family. subimage:
    "turn" shows the crop in a second turn, "patch" makes it one more tile of the image (table 6).
    crop_pixels: to how many pixels the crop is enlarged (eq. 3), "auto" as many as the whole image has as
    the model gets it, "original" as it is, or a number; models of fixed resolution enlarge every crop by
    themselves.
    Build it with `Settings.of`, which checks the values.
    """

    protocol: Protocol
    pathway: Pathway
    rule_name: str
    rule: Rule
    skip_confidence: float
    box_margin: int
    count_eos: bool
    grounding: str
    grounder: Grounder | None
    grounding_checkpoint: str | None
    box_shift: int
    prompts: str
    subimage: Subimage
    crop_pixels: CropPixels

    @classmethod
    def of(
        cls,
        protocol: str = "paper",
        pathway: str = "both",
        select: str | None = None,
        skip_confidence: float = 1.0,
        box_margin: int | None = None,
        count_eos: bool | None = None,
        grounding: str = "model",
        grounding_checkpoint: str | None = None,
        box_shift: int = 0,
        prompts: str | None = None,
        subimage: str = "turn",
        crop_pixels: CropPixels | None = None,
    ) -> Settings:
        """Settings from plain values; None means the protocol's own. UserError for an impossible value."""
        chosen = load_protocol(protocol)
        if pathway not in get_args(Pathway):
            raise choose("pathway", pathway, get_args(Pathway))
        if not _is_number(skip_confidence) or not 0 <= skip_confidence <= 1:
            raise UserError(
                "skip_confidence is a probability from 0 (always skip) to 1 (never skip), "
                f"got {skip_confidence!r}."
            )
        if box_margin is not None:
            _check_pixels("box_margin", box_margin)
        _check_pixels("box_shift", box_shift)
        if crop_pixels is not None:
            check_crop_pixels(crop_pixels)
        if count_eos is not None and not isinstance(count_eos, bool):
            raise UserError(f"count_eos is True or False, got {count_eos!r}.")
        prompts = chosen.name if prompts is None else prompts
        if prompts not in (*PROMPTS, NATIVE):
            raise choose("prompts", prompts, (*PROMPTS, NATIVE))
        chosen = replace(chosen, prompts=PROMPTS.get(prompts, chosen.prompts))
        rule_name = chosen.rule if select is None else select
        if subimage not in get_args(Subimage):
            raise choose("subimage", subimage, get_args(Subimage))
        rule = load_rule(rule_name)
        if subimage == "patch" and isinstance(rule, JointRule):
            raise UserError(
                f"select={rule_name} scores both answers after the region and the crop, and with "
                "subimage=patch there is no such conversation. Choose another rule, such as ppl."
            )
        return cls(
            protocol=chosen,
            pathway=pathway,  # type: ignore[arg-type]
            rule_name=rule_name,
            rule=rule,
            skip_confidence=float(skip_confidence),
            box_margin=chosen.margin if box_margin is None else box_margin,
            count_eos=chosen.count_eos if count_eos is None else count_eos,
            grounding=grounding,
            grounder=load_grounding(grounding),
            grounding_checkpoint=detector_for(grounding, grounding_checkpoint),
            box_shift=box_shift,
            prompts=prompts,
            subimage=subimage,  # type: ignore[arg-type]
            crop_pixels=chosen.crop_pixels if crop_pixels is None else crop_pixels,
        )

    @property
    def may_skip(self) -> bool:
        """Whether a question may do without a second look that others need."""
        return self.pathway == "both" and self.skip_confidence < 1

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, all defaults filled in."""
        return {
            "protocol": self.protocol.name,
            "pathway": self.pathway,
            "select": self.rule_name,
            "skip_confidence": self.skip_confidence,
            "box_margin": self.box_margin,
            "count_eos": self.count_eos,
            "grounding": self.grounding,
            "grounding_checkpoint": self.grounding_checkpoint,
            "box_shift": self.box_shift,
            "prompts": self.prompts,
            "subimage": self.subimage,
            "crop_pixels": self.crop_pixels,
        }


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_pixels(name: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise UserError(f"{name} is a number of pixels, 0 or more, got {value!r}.")
